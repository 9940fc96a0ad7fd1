from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from fedssl.compose import load
from fedssl.config import build
from fedssl.seeding import uniforms
from fedssl.training.image_augment import ImageAugmentation
from fedssl.training.image_view import ImageView
from fedssl.training.rand_augment import autocontrast, equalise, posterise, render_strong, sharpen
from fedssl.training.strong_view import Operation, StrongParameters, StrongView, composed
from fedssl.training.transforms import crop, recolour, solarise, warp

FIRST = ImageView.num_uniforms  # of the columns that are a strong view's own: cutout's three, then two an operation
DEFAULT = StrongView()
PLAIN = StrongView(num_ops=0, cutout=0, shift=0, flip=0)
WHOLE = np.array([1.0, 1, 0, 0])
IDENTITY = np.array([1.0, 0, 0, 0, 1, 0])


def clips(count: int = 6, channels: int = 3, frames: int = 1, height: int = 16, width: int = 16) -> torch.Tensor:
    shape = (count, channels, frames, height, width)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def gradients(count: int = 5) -> torch.Tensor:
    """Return images with more dark pixels than bright ones, none black or white, of other ranges in each channel."""
    shades = np.random.default_rng(1).beta(2, 4, (count, 3, 1, 24, 24)) * [[[[[180]]], [[[140]]], [[[90]]]]] + 20
    return torch.from_numpy(shades.astype(np.uint8))


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1, 1)


def drawn(count: int, augmentation: ImageAugmentation, name: int = 0) -> np.ndarray:
    return uniforms(5, "augment", name, rows=np.arange(count), columns=augmentation.num_uniforms)


def augmentation(strong: StrongView = DEFAULT, size: int = 16) -> ImageAugmentation:
    return ImageAugmentation(size, size, 9, ImageView(), strong=strong)


def one_by_one(count: int, kinds: list[Operation], amounts: list[float], *, size: int = 16) -> StrongParameters:
    operations, sizes = (np.tile(np.array(values)[:, None], count) for values in (kinds, amounts))
    boxes, holes = np.tile(WHOLE, (count, 1)), np.zeros((count, 4), np.int64)
    return StrongParameters(boxes, composed(operations, sizes), operations, sizes, holes)


def near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Compare with an 8-bit image: one grey level."""
    torch.testing.assert_close(ours[:, :, 0] * 255, theirs[:, :, 0].float(), atol=1, rtol=0)


def test_an_image_at_full_range_keeps_its_contrast() -> None:
    images = gradients() / 255
    images[..., 0, 0], images[..., 0, 1] = 0, 1
    assert torch.equal(autocontrast(images, column(*[1.0] * 5)), images)


def test_an_image_of_one_level_has_no_contrast_to_stretch() -> None:
    images = torch.full((1, 3, 1, 4, 4), 0.3)
    images[0, 0, 0, 0, 0] += 1e-6  # as interpolation leaves it
    assert torch.equal(autocontrast(images, column(1)), images)


def test_autocontrast_is_torchvisions() -> None:
    images = gradients()
    near(autocontrast(images / 255, column(*[1.0] * 5)), tv.autocontrast(images[:, :, 0])[:, :, None])


def test_a_clip_is_stretched_by_the_range_of_all_its_frames() -> None:
    clip = torch.tensor([0.2, 0.4, 0.5, 0.6]).view(1, 1, 2, 1, 2)
    torch.testing.assert_close(autocontrast(clip, column(1)).flatten(), torch.tensor([0, 0.5, 0.75, 1]))


def test_half_an_autocontrast_lies_halfway() -> None:
    images = gradients() / 255
    whole = autocontrast(images, column(*[1.0] * 5))
    torch.testing.assert_close(autocontrast(images, column(*[0.5] * 5)), (whole + images) / 2)
    assert torch.equal(autocontrast(images, column(*[0.0] * 5)), images)


def test_an_image_that_has_each_level_equally_often_is_equalised() -> None:
    levels = torch.arange(256).repeat(3).view(1, 1, 1, 16, 48) / 255
    assert torch.equal(equalise(levels, column(1)), levels)


def test_an_image_of_one_level_or_few_pixels_is_not_equalised() -> None:
    one, few = torch.full((1, 1, 1, 16, 16), 0.2), clips(1, height=5, width=5) / 255
    assert torch.equal(equalise(one, column(1)), one)
    torch.testing.assert_close(equalise(few, column(1)), few)


@pytest.mark.parametrize("size", [24, 37, 96])
def test_equalisation_is_torchvisions(size: int) -> None:
    dark = (np.random.default_rng(2).beta(2, 5, (4, 3, 1, size, size)) * 255).astype(np.uint8)
    images = torch.from_numpy(dark)
    theirs = tv.equalize(images[:, :, 0])[:, :, None]
    torch.testing.assert_close(equalise(images / 255, column(*[1.0] * 4)), theirs / 255, atol=1e-6, rtol=0)


def test_a_clip_is_equalised_by_the_levels_of_all_its_frames() -> None:
    clip = clips(2, 3, 4, 24, 24) // 2
    flat = clip.view(2, 3, 1, 4 * 24, 24)
    ours = equalise(clip / 255, column(1, 1)).view_as(flat)
    torch.testing.assert_close(ours, tv.equalize(flat[:, :, 0])[:, :, None] / 255, atol=1e-6, rtol=0)


def test_posterisation_keeps_the_highest_bits() -> None:
    levels = torch.tensor([0, 15, 16, 255]).view(1, 1, 1, 1, 4) / 255
    assert (posterise(levels, column(4)) * 255).flatten().tolist() == [0, 0, 16, 240]
    images = clips(5)
    ours = posterise(images / 255, column(4, 5, 6, 7, 8))
    for index, bits in enumerate((4, 5, 6, 7, 8)):
        torch.testing.assert_close(ours[index] * 255, tv.posterize(images[index], bits).float(), atol=1e-3, rtol=0)


def test_solarisation_is_torchvisions_with_a_threshold_of_each_image() -> None:
    images = clips(3)
    ours = solarise(images / 255, column(0.0, 100.5 / 255, 256 / 255))
    near(ours[:1], tv.solarize(images[:1], 0))
    near(ours[1:2], tv.solarize(images[1:2], 100.5))
    assert torch.equal(ours[2:], images[2:] / 255)


@pytest.mark.parametrize("factor", [0.05, 0.5, 1.0])
def test_sharpness_is_torchvisions(factor: float) -> None:
    images = clips(4, height=9, width=7)
    ours, theirs = sharpen(images / 255, column(*[factor] * 4)), tv.adjust_sharpness(images[:, :, 0], factor)
    near((ours * 255).round() / 255, theirs[:, :, None])  # theirs is rounded twice
    torch.testing.assert_close(ours[:, :, 0], tv.adjust_sharpness(images[:, :, 0] / 255, factor))


def test_an_image_without_an_inside_has_no_sharpness() -> None:
    for height, width in ((1, 5), (2, 2), (5, 1)):
        images = clips(2, height=height, width=width) / 255
        assert torch.equal(sharpen(images, column(0.5, 0.5)), images)


@pytest.mark.parametrize("move", [Operation.ROTATE, Operation.SHEAR_X, Operation.SHEAR_Y, Operation.TRANSLATE_X])
def test_a_move_by_nothing_moves_nothing(move: Operation) -> None:
    assert np.array_equal(composed(np.full((2, 3), move), np.zeros((2, 3))), np.tile(IDENTITY, (3, 1)))
    images, boxes = clips() / 255, np.tile([-0.5, 0.75, 0.1, 0.2], (6, 1))
    moved, outside = warp(images, boxes, np.tile(IDENTITY, (6, 1)), 11)
    assert torch.equal(moved, crop(images, boxes, 11, mirrored=True))
    assert not outside.any()


def test_translations_move_whole_pixels_and_leave_grey() -> None:
    images = clips(4)
    kinds, amounts = [Operation.TRANSLATE_X, Operation.TRANSLATE_Y], [3 / 16, -2 / 16]
    moved = render_strong(images, one_by_one(4, kinds, amounts), 16)
    torch.testing.assert_close(moved[..., :-2, 3:], images[..., 2:, :-3] / 255, atol=1e-5, rtol=0)
    assert (moved[..., -2:, :] == 0.5).all()
    assert (moved[..., :3] == 0.5).all()


@pytest.mark.parametrize(
    ("kind", "amount", "angle", "shear"),
    [
        (Operation.ROTATE, 30, -30, (0, 0)),  # torchvision's affine turns clockwise, its rotate and Pillow's do not
        (Operation.SHEAR_X, 0.3, 0, (np.rad2deg(np.arctan(0.3)), 0)),
        (Operation.SHEAR_Y, -0.3, 0, (0, -np.rad2deg(np.arctan(0.3)))),
    ],
)
def test_rotations_and_shears_are_torchvisions(
    kind: Operation, amount: float, angle: float, shear: tuple[float, float]
) -> None:
    images = clips(2, height=32, width=32) / 255
    maps = np.tile(composed(np.array([[kind]]), np.array([[amount]])), (2, 1))
    ours, outside = warp(images, np.tile(WHOLE, (2, 1)), maps, 32)
    bilinear = tv.InterpolationMode.BILINEAR
    theirs = tv.affine(images[:, :, 0], angle, [0, 0], 1.0, list(shear), interpolation=bilinear, fill=0.0)
    # torchvision fades into the fill half a pixel inside of the edge
    inner = torch.nn.functional.max_pool2d(outside.float(), 3, 1, 1) == 0
    inner[:, [0, -1]], inner[:, :, [0, -1]] = False, False
    assert inner.float().mean() > 0.5
    torch.testing.assert_close(ours[:, :, 0] * inner[:, None], theirs * inner[:, None], atol=1e-4, rtol=0)


def test_moves_are_made_in_their_order() -> None:
    kinds, amounts = np.array([[Operation.TRANSLATE_X], [Operation.ROTATE]]), np.array([[0.25], [90.0]])
    # what was in the middle of the left half goes to the middle, and a turn leaves it there
    assert composed(kinds, amounts)[0] == pytest.approx([0, -1, -0.5, 1, 0, 0], abs=1e-12)
    # a turn to the left brings the middle of the upper half to that of the left half, which then goes to the middle
    assert composed(kinds[::-1], amounts[::-1])[0] == pytest.approx([0, -1, 0, 1, 0, -0.5], abs=1e-12)


def test_colours_are_changed_in_their_order() -> None:
    images = gradients(3)
    kinds, amounts = [Operation.SOLARISE, Operation.BRIGHTNESS, Operation.CONTRAST], [0.25, 0.5, 0.3]
    expected = solarise(images / 255, 0.25)
    expected = recolour(recolour(expected, np.array([[0.5, 1, 1, 0]] * 3)), np.array([[1, 0.3, 1, 0]] * 3))
    result = render_strong(images, one_by_one(3, kinds, amounts, size=24), 24)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_grey_images_have_no_colour_to_take() -> None:
    images = clips(4, 1)
    result = render_strong(images, one_by_one(4, [Operation.COLOUR], [0.05]), 16)
    torch.testing.assert_close(result, images / 255, atol=1e-5, rtol=0)


def test_every_operation_of_a_batch_is_that_of_its_image_alone() -> None:
    kinds, amounts = np.array([list(Operation)]), np.full((1, len(Operation)), 0.5)
    amounts[0, Operation.POSTERISE] = 4
    images = clips(len(Operation))
    boxes, holes = np.tile(WHOLE, (len(Operation), 1)), np.zeros((len(Operation), 4), np.int64)
    together = render_strong(images, StrongParameters(boxes, composed(kinds, amounts), kinds, amounts, holes), 16)
    for index, (kind, amount) in enumerate(zip(kinds[0], amounts[0], strict=True)):
        alone = render_strong(images[index : index + 1], one_by_one(1, [kind], [amount]), 16)
        assert torch.equal(together[index : index + 1], alone)
        assert torch.equal(alone, render_strong(images[index : index + 1], one_by_one(1, [], []), 16)) == (kind == 0)


def test_cutout_is_the_drawn_square() -> None:
    view = augmentation(replace(PLAIN, cutout=0.5))
    numbers = np.zeros((4, view.num_uniforms))
    # sides of 5, 8, 8 and 0 pixels, about pixels (7, 3), (0, 0), (15, 15) and anywhere
    numbers[:, FIRST] = (5 / 8, 0.99, 0.99, 0)
    numbers[:, FIRST + 1] = (7.5 / 16, 0, 0.99, 0.5)
    numbers[:, FIRST + 2] = (3.5 / 16, 0, 0.99, 0.5)
    images = clips(4, frames=2)
    expected = images / 255
    expected[0, ..., 1:6, 5:10], expected[1, ..., :4, :4], expected[2, ..., 11:, 11:] = 0.5, 0.5, 0.5
    result = view(images, numbers, "strong", 0)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert ((result == 0.5).flatten(1).sum(dim=1)).tolist() == [6 * 25, 6 * 16, 6 * 25, 0]


def test_squares_have_the_sides_and_centres_asked_for() -> None:
    parameters = replace(PLAIN, cutout=0.5).draw(np.random.default_rng(0).random((20_000, FIRST + 3)), 32, 32, 32)
    left, right, top, bottom = parameters.holes.T
    whole = (left > 0) & (right < 32) & (top > 0) & (bottom < 32)
    sides = right - left
    assert np.array_equal(sides[whole], (bottom - top)[whole])
    assert (parameters.holes.min(), parameters.holes.max(), sides.max()) == (0, 32, 16)
    # a square of side s crosses an edge with probability s / 32 and then loses s / 4; s is uniform on [0, 16]
    assert sides.mean() == pytest.approx(8 - 256 / 3 / 128, abs=0.1)
    inner = whole & (sides == 5)
    across, down = left[inner] + 2, top[inner] + 2
    assert (across.min(), down.min(), across.max(), down.max()) == (3, 3, 28, 28)
    assert np.corrcoef(across, down)[0, 1] == pytest.approx(0, abs=0.1)


def test_without_magnitude_and_cutout_a_strong_view_is_the_weak_view() -> None:
    weak = ImageView(crop_scale=(1, 1), aspect=(1, 1), shift=0.125, flip=0.5, jitter=0, grey=0)
    for height, width, size in ((16, 16, 16), (20, 28, 11), (13, 13, 32)):
        view = ImageAugmentation(size, size, 9, weak, light=weak, strong=StrongView(magnitude=0, cutout=0))
        images, numbers = clips(30, height=height, width=width), drawn(30, view)
        assert torch.equal(view(images, numbers, "strong", 0), view(images, numbers, "light", 0))
    cut = replace(weak, crop_scale=None)
    numbers = np.random.default_rng(0).random((50, FIRST))
    assert np.array_equal(cut.draw(numbers, 32, 32, 32).boxes, weak.draw(numbers, 32, 32, 32).boxes)


def test_operations_and_amounts_are_those_of_fixmatch() -> None:
    parameters = StrongView(num_ops=3).draw(np.random.default_rng(0).random((20_000, FIRST + 9)), 32, 32, 32)
    operations, amounts = parameters.operations, parameters.amounts
    assert operations.shape == (3, 20_000)
    ranges = {
        Operation.BRIGHTNESS: (0.05, 0.95),
        Operation.CONTRAST: (0.05, 0.95),
        Operation.COLOUR: (0.05, 0.95),
        Operation.SHARPNESS: (0.05, 0.95),
        Operation.SOLARISE: (0, 256 / 255),
        Operation.ROTATE: (-30, 30),
        Operation.SHEAR_X: (-0.3, 0.3),
        Operation.SHEAR_Y: (-0.3, 0.3),
    }
    for kind, (least, greatest) in ranges.items():
        own, width = amounts[operations == kind], greatest - least
        assert (own.min(), own.max()) == pytest.approx((least, greatest), abs=0.01 * width)
        assert own.mean() == pytest.approx((least + greatest) / 2, abs=0.03 * width)
    for kind in (Operation.TRANSLATE_X, Operation.TRANSLATE_Y):  # 0 would be the identity
        assert sorted(set((amounts[operations == kind] * 32).tolist())) == [*range(-10, 0), *range(1, 11)]
    bits, counts = np.unique(amounts[operations == Operation.POSTERISE], return_counts=True)
    assert bits.tolist() == [4, 5, 6, 7]  # 8 would be the identity
    assert counts / 60_000 == pytest.approx([1 / 70] * 4, abs=0.003)
    shares = np.bincount(operations.ravel(), minlength=14) / 60_000
    still = np.array([1, 0, 0, 0, 0, 0, 0, 0.2, 0, 0, 0, 0, 1 / 19.2, 1 / 19.2])  # translations within half a pixel
    assert shares == pytest.approx(np.where(np.arange(14) == 0, still.sum(), 1 - still) / 14, abs=0.005)
    assert np.corrcoef(operations) == pytest.approx(np.eye(3), abs=0.03)


def test_magnitude_scales_every_change() -> None:
    numbers = np.random.default_rng(0).random((5_000, FIRST + 5))
    whole, half = (StrongView(num_ops=1, magnitude=part).draw(numbers, 256, 256, 256) for part in (1.0, 0.5))
    neutral = {kind: 1.0 if 3 <= kind <= 6 else 0.0 for kind in Operation}
    neutral |= {Operation.SOLARISE: 256 / 255, Operation.POSTERISE: 8.0}
    for kind in set(Operation) - {Operation.IDENTITY, Operation.POSTERISE}:
        both = (whole.operations == kind) & (half.operations == kind)
        ratio = (half.amounts[both] - neutral[kind]) / (whole.amounts[both] - neutral[kind])
        tolerance = 0.5 if kind in (Operation.TRANSLATE_X, Operation.TRANSLATE_Y) else 1e-9  # whole pixels
        assert ratio == pytest.approx(np.full(both.sum(), 0.5), abs=tolerance)
    assert set(half.amounts[half.operations == Operation.POSTERISE]) == {6, 7}


@pytest.mark.parametrize(("channels", "frames", "height", "width"), [(3, 1, 16, 16), (1, 3, 13, 21), (3, 2, 7, 5)])
def test_no_batch_changes_a_bit(channels: int, frames: int, height: int, width: int) -> None:
    view = augmentation(StrongView(num_ops=4), 11)
    inputs, numbers = clips(40, channels, frames, height, width), drawn(40, view)
    whole = view(inputs, numbers, "strong", 0)
    assert torch.equal(view(inputs.flip(0), numbers[::-1], "strong", 0).flip(0), whole)
    assert torch.equal(view(inputs[3:17], numbers[3:17], "strong", 0), whole[3:17])
    for index in range(40):
        assert torch.equal(view(inputs[index : index + 1], numbers[index : index + 1], "strong", 0)[0], whole[index])


def test_no_number_of_threads_changes_a_bit() -> None:
    view, inputs, before = (
        augmentation(StrongView(num_ops=4), 32),
        clips(80, height=32, width=32),
        torch.get_num_threads(),
    )
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(view(inputs, drawn(80, view), "strong", 0))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_static_clip_stays_static() -> None:
    view = augmentation(StrongView(num_ops=3))
    result = view(clips(40)[:, :, :1].expand(-1, -1, 4, -1, -1), drawn(40, view), "strong", 0)
    assert torch.equal(result, result[:, :, :1].expand_as(result))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_stay_in_range(channels: int) -> None:
    view = augmentation(StrongView(num_ops=5), 20)
    result = view(clips(200, channels), drawn(200, view), "strong", 0)
    assert (result.dtype, result.shape) == (torch.float32, (200, channels, 1, 20, 20))
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("role", ["full", "local", "light", "clean"])
def test_other_roles_do_not_see_the_columns_of_strong_views(role: str) -> None:
    few, many = augmentation(PLAIN), augmentation(StrongView(num_ops=9))
    assert (few.num_uniforms, augmentation().num_uniforms, many.num_uniforms) == (17, 21, 35)
    assert np.array_equal(drawn(6, many)[:, :17], drawn(6, few))
    assert torch.equal(many(clips(), drawn(6, many), role, 0), few(clips(), drawn(6, few), role, 0))
    assert torch.equal(few(clips(), drawn(6, few)[:, :16], role, 0), few(clips(), drawn(6, few), role, 0))


def test_one_more_operation_leaves_the_others_as_they_are() -> None:
    numbers = drawn(50, augmentation(StrongView(num_ops=3)))
    two, three = (StrongView(num_ops=n).draw(numbers[:, : FIRST + 3 + 2 * n], 16, 16, 16) for n in (2, 3))
    assert np.array_equal(two.operations, three.operations[:2])
    assert np.array_equal(two.holes, three.holes)


@pytest.mark.parametrize(
    ("preset", "magnitude", "cutout", "flip"),
    [("semi", 1.0, 0.5, 0.5), ("semi_grey", 1.0, 0.5, 0.5), ("semi_digits", 0.5, 0.25, 0.0)],
)
def test_presets_are_those_of_fixmatch(preset: str, magnitude: float, cutout: float, flip: float) -> None:
    made: ImageAugmentation = build(load([f"augmentation={preset}"]), "augmentation")
    assert made.strong == StrongView(2, magnitude, cutout, 0.125, flip)
    assert (made.light.shift, made.light.flip, made.full.flip) == (0.125, flip, flip)
    assert made.light.jitter == made.light.grey == made.light.blur == made.light.solarise == 0
    assert list(made.light.crop_scale) == list(made.light.aspect) == [1, 1]
    assert (made.full.hue > 0) == (preset == "semi")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"num_ops": -1}, "num_ops must be 0 or more, got -1"),
        ({"magnitude": 1.1}, r"magnitude must be between 0 and 1, got 1\.1"),
        ({"cutout": -0.5}, r"cutout must be between 0 and 1, got -0\.5"),
        ({"shift": 2}, "shift must be between 0 and 1, got 2"),
        ({"flip": 2}, "flip must be between 0 and 1, got 2"),
    ],
)
def test_a_bad_setting_is_named(setting: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        StrongView(**setting)
