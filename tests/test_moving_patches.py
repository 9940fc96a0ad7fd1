"""Patches that move over a clip: their ways, and what is pasted."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from fedssl.objectives.moving_patches import MovingPatches, interpolation, unit

ONE = MovingPatches(num_patches=1, clip_frames=4)
ALWAYS, HALF = 0.0, 0.5
SOURCE, ALPHA, SHAPE, SOFTNESS, SHOWN = 24, 25, 26, 27, slice(29, 33)  # places of one patch's numbers
RECTANGLE, ELLIPSE, RHOMBUS = 0.2, 0.6, 0.9
draws = partial(torch.rand, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return draws(*shape, generator=torch.Generator().manual_seed(seed))


def look(shape: float = RECTANGLE, source: float = 0.0, shown: float = ALWAYS) -> Tensor:
    """The numbers of one opaque patch with a sharp edge."""
    numbers = torch.full((1, ONE.num_uniforms), HALF, dtype=torch.float64)
    numbers[0, SOURCE], numbers[0, SHAPE], numbers[0, SHOWN] = source, shape, shown
    numbers[0, ALPHA], numbers[0, SOFTNESS] = 1.0, 0.9
    return numbers


def moving(*lefts: float, top: float = 2.0, side: float = 4.0) -> Tensor:
    rows = [[left, top, left + side, top + side] for left in lefts]
    return torch.tensor([[rows]], dtype=torch.float64)


def test_a_pasted_block_is_its_source_when_it_is_opaque_and_keeps_its_size() -> None:
    clips = random(1, 3, 4, 12, 12)
    pasted = ONE.paste(clips, moving(1, 2, 4, 7), look(source=0.3))  # of frame 1
    for frame, left in enumerate((1, 2, 4, 7)):
        assert torch.equal(pasted[:, :, frame, 2:6, left : left + 4], clips[:, :, 1, 2:6, 2:6])
        outside = torch.ones(12, 12, dtype=torch.bool)
        outside[2:6, left : left + 4] = False
        assert torch.equal(pasted[:, :, frame][..., outside], clips[:, :, frame][..., outside])


def test_a_frame_that_the_patch_is_of_does_not_change() -> None:
    clips = random(1, 1, 4, 12, 12)
    pasted = ONE.paste(clips, moving(1, 3, 5, 6), look(shape=ELLIPSE, source=0.6))
    assert torch.equal(pasted[:, :, 2], clips[:, :, 2])
    assert not torch.equal(pasted[:, :, 1], clips[:, :, 1])


def test_a_hidden_patch_is_seen_in_the_first_frame_alone_and_in_its_own() -> None:
    clips = random(1, 1, 4, 12, 12)
    pasted = ONE.paste(clips, moving(1, 3, 5, 6), look(source=0.3, shown=0.85))
    assert not torch.equal(pasted[:, :, 0], clips[:, :, 0])
    assert torch.equal(pasted[:, :, 1:], clips[:, :, 1:])


@pytest.mark.parametrize(
    ("shape", "area"),
    [(RECTANGLE, 1.0), (ELLIPSE, math.pi / 4), (RHOMBUS, 0.5)],
    ids=["rectangle", "ellipse", "rhombus"],
)
def test_a_shape_covers_its_share_of_the_box(shape: float, area: float) -> None:
    clips = torch.zeros(1, 1, 4, 64, 64, dtype=torch.float64)
    clips[:, :, 1] = 1  # a patch of ones in frames of zeros
    pasted = ONE.paste(clips, moving(4, 4, 4, 4, top=8, side=40), look(shape, source=0.3))
    assert pasted[0, 0, 0].sum().item() / 40**2 == pytest.approx(area, abs=0.03)  # of pixels


def test_opacity_is_four_fifths_at_least_and_a_soft_edge_falls_to_nothing() -> None:
    clips = torch.zeros(1, 1, 4, 64, 64, dtype=torch.float64)
    clips[:, :, 1] = 1
    numbers = look(source=0.3)
    numbers[0, ALPHA] = 0.0
    numbers[0, SOFTNESS] = 0.1
    pasted = ONE.paste(clips, moving(4, 4, 4, 4, top=8, side=40), numbers)[0, 0, 0]
    assert pasted[28, 24].item() == pytest.approx(0.8)
    # the edge is 0.2 - 0.15 / 2 of the box wide, the outermost pixel's middle 0.5 / 40 inside
    assert pasted[28, 4].item() == pytest.approx(0.8 * 0.5 / 40 / 0.125)


def test_a_patch_that_grows_shows_the_same_content_larger() -> None:
    ramp = torch.linspace(0, 1, 12, dtype=torch.float64).expand(1, 1, 4, 12, 12)
    boxes = moving(2, 2, 2, 2)
    boxes[0, 0, 3] = torch.tensor([1, 1, 9, 9])  # twice as large
    pasted = ONE.paste(ramp, boxes, look())[0, 0, 3, 4]
    steps = pasted[2:8].diff()  # the block's inside; at its rim neighbours of the source mix in
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5 / 11))


def test_boxes_stay_inside_start_with_published_sizes_and_are_sorted_by_area() -> None:
    patches = MovingPatches(3, 16)
    boxes = patches.boxes(random(400, patches.num_uniforms), 112, 112)
    assert boxes.shape == (400, 3, 16, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= 112
    sizes = boxes[..., 2:] - boxes[..., :2]
    first = sizes[:, :, 0].prod(dim=2).sqrt()
    assert 16 * math.exp(-0.18) <= first.min() < 15
    assert 70 < first.max() <= 64 * math.exp(0.18)
    areas = sizes.prod(dim=3).mean(dim=2)
    assert (areas.diff(dim=1) <= 0).all()


def test_centres_move_by_at_most_three_pixels_a_frame_on_average_and_sizes_by_their_factor() -> None:
    patches = MovingPatches(1, 16)
    boxes = patches.boxes(random(500, patches.num_uniforms), 112, 112)
    centres, sizes = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    ways = (centres[:, :, -1] - centres[:, :, 0]).abs()
    assert 35 < ways.max() <= 3 * 15
    inside = (boxes > 0).all(dim=3).all(dim=2) & (boxes < 112).all(dim=3).all(dim=2)  # cut off nowhere
    growth = (sizes[:, :, -1] / sizes[:, :, 0]).log().abs()[inside]
    assert 0.3 < growth.max() <= 0.025 * 15


def test_half_of_the_ways_are_straight_and_even_apart_from_acceleration() -> None:
    patches = MovingPatches(1, 9)
    numbers = random(2000, patches.num_uniforms)
    numbers[:, 9:12] = 0.1  # linear everywhere
    numbers[:, 4:6] = 0.5  # from the middle, so that no side is in the way
    boxes = patches.boxes(numbers, 112, 112)
    steps = ((boxes[..., 0] + boxes[..., 2]) / 2).diff(dim=2)[:, 0]
    even = (steps - steps[:, :1]).abs().amax(dim=1) < 1e-9
    assert even.double().mean().item() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("ease", "shares"), [(0.1, (0.5, 0.5)), (0.8, (0.25, 0.75)), (0.9, (0.75, 0.25))])
def test_a_way_without_keys_is_linear_or_accelerates_or_slows_down(ease: float, shares: tuple[float, float]) -> None:
    patches = MovingPatches(1, 3)
    numbers = torch.full((1, patches.num_uniforms), HALF, dtype=torch.float64)
    numbers[0, 6], numbers[0, 9:12], numbers[0, 12] = 0.0, ease, 1.0  # no key, to the right at full speed
    boxes = patches.boxes(numbers, 112, 112)
    steps = ((boxes[..., 0] + boxes[..., 2]) / 2).diff(dim=2)[0, 0]
    assert steps.tolist() == pytest.approx([6 * share for share in shares])


def test_small_clips_have_the_same_ways_in_proportion() -> None:
    patches = MovingPatches(2, 8)
    numbers = random(5, patches.num_uniforms)
    assert unit(32, 48) == pytest.approx(32 / 112)
    large, small = patches.boxes(numbers, 112, 112), patches.boxes(numbers, 56, 56)
    torch.testing.assert_close(small, large / 2)
    tiny = patches.boxes(numbers, 4, 4)
    assert ((tiny[..., 2:] - tiny[..., :2]) > 0).all()


def test_a_clip_s_patches_do_not_depend_on_its_batch() -> None:
    patches = MovingPatches(3, 4)
    clips, numbers = random(3, 2, 4, 16, 16), random(3, patches.num_uniforms, seed=1)
    boxes = patches.boxes(numbers, 16, 16)
    together = patches.paste(clips, boxes, numbers)
    alone = patches.boxes(numbers[1:2], 16, 16)
    assert torch.equal(alone, boxes[1:2])
    torch.testing.assert_close(patches.paste(clips[1:2], alone, numbers[1:2]), together[1:2])


def test_interpolation_gives_values_between_neighbours_and_the_nearest_outside() -> None:
    values = torch.tensor([1.0, 5.0, 2.0])
    points = torch.tensor([-3.0, 0.0, 0.25, 1.5, 2.0, 9.0])
    assert (interpolation(points, 3) @ values).tolist() == [1.0, 1.0, 2.0, 3.5, 2.0, 2.0]


@pytest.mark.parametrize(("name", "value"), [("num_patches", 0), ("clip_frames", 1)])
def test_arguments_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        MovingPatches(**{"num_patches": 3, "clip_frames": 8, name: value})
