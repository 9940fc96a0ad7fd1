from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as tv

from fedssl.compose import load
from fedssl.config import build
from fedssl.data.arrays import ArrayDataset
from fedssl.objectives.objective import Draw, Objective, Population, Role, Step
from fedssl.seeding import uniforms
from fedssl.training.augment import resize
from fedssl.training.image_augment import ImageAugmentation
from fedssl.training.image_view import ImageView
from fedssl.training.loop import Examples, Stream, make_batch
from fedssl.training.transforms import blur, crop, recolour, solarise

PLAIN = ImageView(crop_scale=(1, 1), aspect=(1, 1), flip=0, jitter=0, grey=0)
EVERYTHING = ImageView(blur=0.5, solarise=0.3)
PRESETS = ("symmetric", "weak", "asymmetric", "vicreg", "light", "crop_only")


def clips(count: int = 6, channels: int = 3, frames: int = 1, height: int = 16, width: int = 16) -> torch.Tensor:
    shape = (count, channels, frames, height, width)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def drawn(count: int, view: int = 0, columns: int = 21) -> np.ndarray:
    return uniforms(5, "augment", view, rows=np.arange(count), columns=columns)


def augmentation(view: ImageView = EVERYTHING, size: int = 16) -> ImageAugmentation:
    return ImageAugmentation(size, size, 9, view, local=replace(view, crop_scale=(0.05, 0.4)))


def test_a_key_gives_the_same_pixels_and_each_view_others() -> None:
    first, again, second = (augmentation()(clips(), drawn(6, view), "full", 0) for view in (0, 0, 1))
    assert torch.equal(first, again)
    assert ((first != second).flatten(1).float().mean(dim=1) > 0.5).all()


@pytest.mark.parametrize("role", ["full", "local", "light", "clean"])
@pytest.mark.parametrize(("channels", "frames", "height", "width"), [(3, 1, 16, 16), (1, 3, 13, 21), (3, 2, 7, 5)])
def test_no_batch_changes_a_bit(role: Role, channels: int, frames: int, height: int, width: int) -> None:
    view, inputs, numbers = augmentation(size=11), clips(9, channels, frames, height, width), drawn(9)
    whole = view(inputs, numbers, role, 0)
    assert torch.equal(view(inputs.flip(0), numbers[::-1], role, 0).flip(0), whole)
    assert torch.equal(view(inputs[3:7], numbers[3:7], role, 0), whole[3:7])
    for index in range(9):
        assert torch.equal(view(inputs[index : index + 1], numbers[index : index + 1], role, 0)[0], whole[index])


def test_no_number_of_threads_changes_a_bit() -> None:
    inputs, numbers, before = clips(80, height=32, width=32), drawn(80), torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(augmentation()(inputs, numbers, "full", 0))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("size", [16, 32, 11])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_without_randomness_is_the_resized_image(size: int, channels: int) -> None:
    inputs = clips(3, channels, 2)
    result = augmentation(PLAIN, size)(inputs, drawn(3), "full", 0)
    torch.testing.assert_close(result, resize(inputs, size, size), atol=1e-5, rtol=0)
    assert torch.equal(augmentation(EVERYTHING, size)(inputs, drawn(3), "clean", 0), resize(inputs, size, size))


def test_a_flip_mirrors_left_and_right() -> None:
    result = augmentation(replace(PLAIN, flip=1))(clips(), drawn(6), "full", 0)
    torch.testing.assert_close(result, clips().flip(-1) / 255, atol=1e-5, rtol=0)


def test_a_box_is_that_part_of_the_image() -> None:
    inputs = clips(1, height=20, width=20) / 255
    result = crop(inputs, np.array([[0.5, 0.5, -0.5, 0.5]]), 10)
    torch.testing.assert_close(result, inputs[..., 10:, :10], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 48)])
def test_boxes_lie_inside_the_image_with_the_areas_and_aspects_asked_for(height: int, width: int) -> None:
    view = ImageView(crop_scale=(0.08, 0.5), aspect=(0.75, 4 / 3))
    across, down, x, y = view.draw(np.random.default_rng(0).random((10_000, 14)), height, width, 32).boxes.T
    flipped, across = across < 0, np.abs(across)
    area, aspect = across * down, across * width / (down * height)
    assert (np.abs(x) + across <= 1 + 1e-9).all()
    assert (np.abs(y) + down <= 1 + 1e-9).all()
    assert (area.min(), area.max()) == pytest.approx((0.08, 0.5), abs=1e-3)
    assert area.mean() == pytest.approx(0.29, abs=0.005)
    assert (aspect.min(), aspect.max()) == pytest.approx((0.75, 4 / 3), abs=1e-3)
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.01)
    assert np.corrcoef([area, aspect, x / (1 - across), y / (1 - down)]) == pytest.approx(np.eye(4), abs=0.05)
    assert flipped.mean() == pytest.approx(0.5, abs=0.02)
    for centre, share, length in ((x, across, width), (y, down, height)):
        begin = (centre - share + 1) / 2 * length
        inner = begin < length * (1 - share) - 1e-9
        assert np.abs(begin - np.round(begin))[inner].max() < 1e-9  # whole pixels
        assert begin.min() == pytest.approx(0, abs=1e-9)


def test_a_box_that_cannot_fit_keeps_its_aspect_and_shrinks() -> None:
    view = ImageView(crop_scale=(1, 1), aspect=(0.75, 4 / 3))
    across, down, _, _ = np.abs(view.draw(np.random.default_rng(0).random((50, 14)), 10, 40, 8).boxes.T)
    assert down == pytest.approx(np.ones(50))
    assert across * 40 / 10 == pytest.approx(np.full(50, 4 / 3))


def test_a_cut_copies_whole_pixels() -> None:
    view = ImageView(crop_scale=None, flip=0, jitter=0, grey=0)
    inputs = clips(60, height=20, width=24)
    cuts = augmentation(view, 16)(inputs, drawn(60), "full", 0)
    places = set()
    for image, cut in zip(inputs / 255, cuts, strict=True):
        windows = {(y, x): image[..., y : y + 16, x : x + 16] for y in range(5) for x in range(9)}
        places.add(next(place for place, window in windows.items() if torch.allclose(cut, window, atol=1e-5)))
    assert {y for y, _ in places} == set(range(5))
    assert {x for _, x in places} == set(range(9))


def test_an_image_goes_on_as_its_mirror_image() -> None:
    view = ImageView(crop_scale=None, shift=0.25, flip=0, jitter=0, grey=0)
    numbers = np.zeros((1, 21))  # four pixels to the left of the image, and above it
    result = augmentation(view)(clips(1), numbers, "full", 0)[0, 0, 0]
    image = clips(1)[0, 0, 0] / 255
    torch.testing.assert_close(result[4:, 4:], image[:12, :12], atol=1e-5, rtol=0)
    torch.testing.assert_close(result[4:, :4], image[:12, :4].flip(1), atol=1e-5, rtol=0)


def test_a_cut_must_fit() -> None:
    with pytest.raises(ValueError, match=r"size must be at most 20 for a cut from 16 pixels with shift=0\.125, got 21"):
        augmentation(ImageView(crop_scale=None, shift=0.125), 21)(clips(), drawn(6), "full", 0)
    assert augmentation(ImageView(crop_scale=None, shift=0.125), 20)(clips(), drawn(6), "full", 0).shape[-1] == 20


def test_factors_of_one_and_no_turn_of_the_hue_change_nothing() -> None:
    inputs = clips() / 255
    assert torch.equal(recolour(inputs, np.tile([1.0, 1, 1, 0], (6, 1))), inputs)
    torch.testing.assert_close(recolour(inputs, np.tile([1.0, 1, 1, 1], (6, 1))), inputs)


def test_brightness_contrast_and_saturation_are_torchvisions_in_any_order() -> None:
    images = 0.45 + 0.1 * torch.rand(1, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    factors = {tv.adjust_brightness: 1.1, tv.adjust_contrast: 0.7, tv.adjust_saturation: 1.4}
    ours = recolour(images, np.array([[*factors.values(), 0.0]]))[0, :, 0]
    for order in permutations(factors):
        theirs = images[0, :, 0]
        for change in order:
            theirs = change(theirs, factors[change])
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)  # their weights of grey sum to 0.9999


def test_a_turn_of_the_hue_keeps_grey_and_can_be_undone() -> None:
    inputs = clips() / 255
    turned = recolour(inputs, np.tile([1.0, 1, 1, 0.3], (6, 1)))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close((turned * luma).sum(dim=1), (inputs * luma).sum(dim=1))
    assert (turned - inputs).abs().max() > 0.2
    torch.testing.assert_close(recolour(turned, np.tile([1.0, 1, 1, -0.3], (6, 1))), inputs, atol=1e-5, rtol=0)


def test_grey_has_equal_channels() -> None:
    view = replace(PLAIN, jitter=1, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=1)
    result = augmentation(view)(clips(), drawn(6), "full", 0)
    assert torch.equal(result, result[:, :1].expand_as(result))
    luma = recolour(clips() / 255, np.tile([1.0, 1, 0, 0], (6, 1)))[:, 0]
    torch.testing.assert_close(luma, (clips() / 255 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)).sum(dim=1))


def test_one_channel_has_brightness_and_contrast_alone() -> None:
    inputs = clips(1, 1) / 255
    result = recolour(inputs, np.array([[1.2, 0.5, 0.0, 0.3]]))
    torch.testing.assert_close(result, 1.2 * (0.5 * inputs + 0.5 * inputs.mean()))


def test_the_contrast_of_a_clip_is_about_the_mean_of_all_its_frames() -> None:
    inputs = clips(2, 3, 4, 5, 7) / 255
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1, 1)
    means = (inputs * luma).sum(dim=1).mean(dim=(1, 2, 3)).view(2, 1, 1, 1, 1).expand_as(inputs)
    torch.testing.assert_close(recolour(inputs, np.tile([1.0, 0, 1, 0], (2, 1))), means)


@pytest.mark.parametrize("preset", [*PRESETS, "semi"])
def test_pixels_stay_in_range(preset: str) -> None:
    view = build(load([f"augmentation={preset}"]), "augmentation")
    for ordinal in range(2):
        result = view(clips(40, height=32, width=32), drawn(40), "full", ordinal)
        assert result.dtype == torch.float32
        assert result.shape == (40, 3, 1, 32, 32)
        assert result.min() >= 0
        assert result.max() <= 1


@pytest.mark.parametrize("level", [0, 100, 255])
def test_an_image_of_one_colour_stays_one(level: int) -> None:
    inputs = torch.tensor([level, 40, 200], dtype=torch.uint8).view(1, 3, 1, 1, 1).expand(30, 3, 1, 16, 16)
    result = augmentation(replace(EVERYTHING, solarise_threshold=0.5003))(inputs, drawn(30), "full", 0).flatten(3)
    torch.testing.assert_close(result, result[..., :1].expand_as(result), atol=1e-6, rtol=0)


def test_a_static_clip_stays_static() -> None:
    static = clips().expand(-1, -1, 4, -1, -1)
    result = augmentation()(static, drawn(6), "full", 0)
    assert torch.equal(result, result[:, :, :1].expand_as(result))


@pytest.mark.parametrize("size", [8, 64])
def test_a_blur_spreads_each_pixel_and_loses_nothing(size: int) -> None:
    sigmas = np.array([0.1, 0.7, 2.0])
    constant = torch.full((3, 3, 2, size, size), 0.7)
    torch.testing.assert_close(blur(constant, sigmas), constant)
    point = torch.zeros(3, 1, 1, size, size)
    point[..., size // 2, size // 2] = 1
    taps = 2 * max(1, size // 20) + 1
    spread = blur(point, sigmas)
    torch.testing.assert_close(spread.sum(dim=(1, 2, 3, 4)), torch.ones(3))
    for index, sigma in enumerate(sigmas):
        expected = tv.gaussian_blur(point[index, 0], [taps, taps], [sigma, sigma])
        torch.testing.assert_close(spread[index, 0], expected, atol=1e-6, rtol=0)


def test_solarisation_inverts_bright_pixels() -> None:
    pixels = torch.tensor([0.0, 0.2, 0.5, 0.9])
    torch.testing.assert_close(solarise(pixels, 0.5), torch.tensor([0.0, 0.2, 0.5, 0.1]))
    inputs = clips()
    result = augmentation(replace(PLAIN, solarise=1))(inputs, drawn(6), "full", 0)
    expected = torch.where(inputs >= 128, 255 - inputs, inputs) / 255
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_only_those_images_are_blurred_or_solarised_that_drew_it() -> None:
    view = replace(PLAIN, blur=0.5, blur_sigma=(1.0, 1.0), solarise=0.5)
    numbers = np.full((4, 21), 0.9)
    numbers[1::2, 11], numbers[2:, 13] = 0.1, 0.1  # the second and fourth blur, the third and fourth solarise
    plain = clips(4) / 255
    expected = torch.stack((plain[0], blur(plain, np.ones(4))[1], solarise(plain[2], 0.5), plain[3]))
    expected[3] = solarise(blur(plain, np.ones(4))[3], 0.5)
    result = augmentation(view)(clips(4), numbers, "full", 0)
    near = (result - expected).abs() < 1e-5
    assert near.float().mean() > 0.999  # a pixel may lie at the threshold


def test_draws_have_the_ranges_and_shares_asked_for() -> None:
    view = ImageView(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, blur=0.25, solarise=0.1)
    parameters = view.draw(np.random.default_rng(0).random((10_000, 14)), 32, 32, 32)
    assert parameters.colours is not None
    factors = parameters.colours - [1, 1, 1, 0]
    coloured = factors[:, 0] != 0
    assert coloured.mean() == pytest.approx(0.8, abs=0.02)
    assert not factors[~coloured][:, [1, 3]].any()
    assert np.abs(factors[:, [0, 1, 3]]).max(axis=0) == pytest.approx([0.4, 0.3, 0.1], abs=1e-3)
    grey = parameters.colours[:, 2] == 0
    assert grey.mean() == pytest.approx(0.2, abs=0.02)
    assert np.abs(factors[~grey, 2]).max() == pytest.approx(0.2, abs=1e-3)
    assert np.corrcoef(coloured, grey)[0, 1] == pytest.approx(0, abs=0.03)
    blurred = parameters.sigmas > 0
    assert blurred.mean() == pytest.approx(0.25, abs=0.02)
    sigmas = parameters.sigmas[blurred]
    assert (sigmas.min(), sigmas.max()) == pytest.approx((0.1, 2.0), abs=5e-3)
    assert parameters.solarised.mean() == pytest.approx(0.1, abs=0.01)


def test_full_views_take_turns_and_other_roles_have_their_own() -> None:
    mirrored, bright = replace(PLAIN, flip=1), replace(PLAIN, solarise=1, solarise_threshold=0)
    both = ImageAugmentation(16, 16, 8, mirrored, bright, local=PLAIN, light=PLAIN)
    plain = clips() / 255
    for ordinal, expected in ((0, plain.flip(-1)), (1, 1 - plain), (2, plain.flip(-1))):
        torch.testing.assert_close(both(clips(), drawn(6), "full", ordinal), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(both(clips(), drawn(6), "light", 0), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(both(clips(), drawn(6), "local", 1), resize(clips(), 8, 8), atol=1e-5, rtol=0)
    assert both(clips(), drawn(6), "strong", 0).shape == (6, 3, 1, 16, 16)


class _Roles(Objective):
    views: tuple[Role, ...] = ("full", "local", "full", "clean")

    def build(self, encoder: nn.Module, population: Population) -> dict[str, nn.Module]:
        return {}

    def step(self, model: nn.ModuleDict, batch: object) -> Step:
        return Step(torch.zeros(()), {})


def test_the_loop_asks_for_views_by_role() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 16, 16, 3), dtype=np.uint8)
    dataset = ArrayDataset(np.zeros(5, np.int64), ("one",), ("",) * 5, pixels)
    examples = Examples(dataset, np.arange(5), augmentation())
    stream, device = Stream(0, 0, 1), torch.device("cpu")
    whole = make_batch(_Roles(), examples, np.arange(5), stream, 0, device).views
    assert [view.shape[-1] for view in whole] == [16, 9, 16, 16]
    assert not torch.equal(whole[0], whole[2])
    part = make_batch(_Roles(), examples, np.array([3, 1]), stream, 0, device).views
    assert all(torch.equal(few, all_[[3, 1]]) for few, all_ in zip(part, whole, strict=True))


class _LastFrames(_Roles):
    views: tuple[Role, ...] = ("clean",)

    def draw(self, num_frames: int, uniforms: np.ndarray) -> Draw:
        return Draw(np.array([[num_frames - 2, num_frames - 1]]), num_frames)


@dataclass
class _Videos:
    labels: np.ndarray
    classes: tuple[str, ...] = ("one",)
    owners: tuple[str, ...] = ("", "", "")

    def __len__(self) -> int:
        return 3

    def read(self, index: int) -> np.ndarray:
        return np.arange((4, 2, 4)[index], dtype=np.uint8)[:, None, None, None] + np.zeros((1, 16, 16, 1), np.uint8)


def test_each_video_is_drawn_from_by_its_own_length() -> None:
    examples = Examples(_Videos(np.zeros(3, np.int64)), np.arange(3), augmentation())
    batch = make_batch(_LastFrames(), examples, np.arange(3), Stream(0, 0, 1), 0, torch.device("cpu"))
    assert (batch.views[0][:, 0, :, 0, 0] * 255).round().tolist() == [[2, 3], [0, 1], [2, 3]]
    assert batch.targets.tolist() == [4, 2, 4]


@pytest.mark.parametrize(
    ("preset", "jitter", "crop_scale", "solarise"),
    [
        ("symmetric", (0.8, 0.8, 0.8, 0.8, 0.2), [0.08, 1.0], [0.0]),
        ("weak", (0.8, 0.4, 0.4, 0.4, 0.1), [0.08, 1.0], [0.0]),
        ("asymmetric", (0.8, 0.4, 0.4, 0.2, 0.1), [0.08, 1.0], [0.0, 0.2]),
        ("vicreg", (0.8, 0.4, 0.4, 0.2, 0.1), [0.2, 1.0], [0.1]),
        ("light", (0, 0, 0, 0, 0), [0.08, 1.0], [0.0]),
        ("crop_only", (0, 0, 0, 0, 0), None, [0.0]),
    ],
)
def test_presets_are_the_published_ones(
    preset: str, jitter: Sequence[float], crop_scale: Sequence[float] | None, solarise: Sequence[float]
) -> None:
    made: ImageAugmentation = build(load([f"augmentation={preset}"]), "augmentation")
    views = [view for view in (made.full, made.second) if view is not None]
    assert [view.solarise for view in views] == solarise
    for view in views:
        assert (view.jitter, view.brightness, view.contrast, view.saturation, view.hue) == jitter
        assert (view.crop_scale, view.flip, view.blur) == (crop_scale, 0.5, 0.0)
        assert view.grey == (0.2 if view.jitter else 0.0)
    assert made.light.jitter == made.light.grey == 0


def test_a_setting_of_a_view_can_be_changed() -> None:
    words = ["augmentation=asymmetric", "augmentation.second.blur=0.1", "augmentation.local.crop_scale=[0.1,0.3]"]
    made: ImageAugmentation = build(load(words), "augmentation")
    assert (made.full.blur, made.second.blur, made.local.crop_scale) == (0, 0.1, [0.1, 0.3])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_scale", [0.0, 1.0]),
        ("crop_scale", [0.5, 1.5]),
        ("crop_scale", [0.5]),
        ("aspect", [2.0, 1.0]),
        ("blur_sigma", [0.0, 1.0]),
        ("shift", -0.1),
        ("flip", 1.1),
        ("brightness", -0.1),
        ("hue", 0.6),
        ("solarise", 2.0),
    ],
)
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        ImageView(**{name: value})


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="local_size must be at least 1, got 0"):
        ImageAugmentation(8, 8, 0, PLAIN)
    with pytest.raises(ValueError, match="width must be 8 as the height, since views are square, got 9"):
        ImageAugmentation(8, 9, 8, PLAIN)
    with pytest.raises(ValueError, match="clips must have 1 or 3 channels, got 2"):
        augmentation()(clips(2, 2), drawn(2), "full", 0)
