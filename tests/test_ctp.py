import numpy as np
import pytest
import torch
from batches import batch_of
from torch import Tensor, nn
from torchvision.ops import box_iou, roi_align

from fedssl.models.bundle import build_bundle
from fedssl.models.small3d import small3d
from fedssl.objectives.ctp import (
    Ctp,
    decode,
    encode,
    intersection_over_union,
    region_align,
    trajectory_loss,
)
from fedssl.objectives.moving_patches import unit
from fedssl.objectives.objective import Batch


def ctp(frames: int = 4, size: int = 16) -> Ctp:
    return Ctp(frames, num_patches=2, hidden=8, height=size, width=size, channels=1)


def model_of(objective: Ctp) -> nn.ModuleDict:
    return build_bundle(lambda: small3d(width=4), objective, seed=0)


def batch(objective: Ctp, number: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(number, *objective.shape, generator=generator)
    numbers = torch.rand(number, objective.num_uniforms, dtype=torch.float64, generator=generator)
    return batch_of(clips, uniforms=numbers)


def boxes_of(number: int = 4, frames: int = 6) -> Tensor:
    objective = Ctp(frames)
    numbers = torch.rand(
        number, objective.patches.num_uniforms, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    return objective.patches.boxes(numbers, 112, 112)


def test_boxes_that_stand_still_cost_a_zero_prediction_nothing() -> None:
    still = boxes_of()[:, :, :1].expand(-1, -1, 6, -1)
    target = encode(still, 1.0)
    assert trajectory_loss(torch.zeros_like(target), target).item() == 0


def test_decoded_encoded_boxes_are_the_boxes_and_overlap_whole() -> None:
    boxes = boxes_of()
    back = decode(encode(boxes, 0.3), boxes[:, :, 0], 0.3)
    torch.testing.assert_close(back, boxes)
    assert intersection_over_union(back, boxes).min().item() == pytest.approx(1)


@pytest.mark.parametrize(("error", "loss"), [(0.5, 0.125), (1.0, 0.5), (2.0, 1.5), (-2.0, 1.5)])
def test_the_loss_of_one_error_is_square_when_small_and_linear_when_large(error: float, loss: float) -> None:
    predicted = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    predicted[..., 2] = error
    assert trajectory_loss(predicted, torch.zeros_like(predicted)).item() == pytest.approx(loss, abs=1e-9)


@pytest.mark.parametrize("frames", [2, 6, 16])
def test_a_shift_by_a_pixel_costs_a_zero_prediction_its_share_of_the_frames(frames: int) -> None:
    shifted = boxes_of(frames=frames)[:, :, :1].repeat(1, 1, frames, 1)
    shifted[:, :, 1:, 0::2] += 1
    target = encode(shifted, unit(112, 112))
    expected = (1 / 0.8 - 0.5) * (frames - 1) / frames
    assert trajectory_loss(torch.zeros_like(target), target).item() == pytest.approx(expected, abs=1e-9)


def test_a_growth_is_the_logarithm_of_the_ratio() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 8.0], [-2.0, 0.0, 6.0, 8.0]], dtype=torch.float64)
    assert encode(boxes, 1.0)[1].tolist() == pytest.approx([0, 0, np.log(2) / 0.04, 0])


def test_regions_are_those_of_torchvision_s_aligned_pooling() -> None:
    maps = torch.rand(4, 5, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    boxes = boxes_of()[:, :, 0]
    rows = torch.cat((torch.arange(4.0).repeat_interleave(3)[:, None], boxes.flatten(0, 1)), dim=1)
    expected = roi_align(maps, rows.double(), 5, 7 / 112, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(region_align(maps, boxes / 112).flatten(0, 1), expected)


def test_overlaps_are_those_of_torchvision() -> None:
    boxes = boxes_of()[:, 0, 0]
    overlaps = intersection_over_union(boxes[:, None], boxes[None])
    torch.testing.assert_close(overlaps, box_iou(boxes, boxes))


def test_a_step_is_the_loss_of_the_head_on_the_pasted_clip() -> None:
    objective = ctp()
    model, what = model_of(objective).eval(), batch(ctp())
    own = what.uniforms[:, 2:]
    boxes = objective.patches.boxes(own, 16, 16)
    maps = model["backbone"].feature_map(objective.patches.paste(what.views[0], boxes, own))
    predicted = model["head"](maps, boxes[:, :, 0] / 16)
    step = objective.step(model, what)
    torch.testing.assert_close(step.loss, trajectory_loss(predicted, encode(boxes, 1 / 7).float()))
    overlap = intersection_over_union(decode(predicted, boxes[:, :, 0], 1 / 7), boxes).mean()
    torch.testing.assert_close(step.metrics["iou"], overlap.detach())


def test_the_loss_is_a_mean_over_clips() -> None:
    objective = ctp()
    model, what = model_of(objective).eval(), batch(objective)
    places = torch.arange(3)
    parts = [objective.step(model, what.where(places == place)).loss for place in places]
    torch.testing.assert_close(objective.step(model, what).loss, torch.stack(parts).mean())


@pytest.mark.parametrize("number", [1, 3])
def test_gradients_are_finite_and_reach_every_parameter(number: int) -> None:
    objective = ctp(size=32)
    model = model_of(objective)
    objective.step(model, batch(objective, number)).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_patches_can_be_followed_after_some_steps() -> None:
    objective = Ctp(8, num_patches=1, hidden=32, height=32, width=32, channels=1)
    model, what = build_bundle(lambda: small3d(width=8), objective, seed=0), batch(objective, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        step = objective.step(model, what)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(step.loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_strides_are_those_that_fit_and_clips_lie_inside() -> None:
    objective, rng = Ctp(clip_frames=8), np.random.default_rng(0)
    seen = {}
    for num_frames in (8, 15, 22, 100):
        drawn = [objective.draw(num_frames, rng.random(2)).frames[0] for _ in range(200)]
        assert all(frames[0] >= 0 and frames[-1] < num_frames for frames in drawn)
        assert all(len(set(np.diff(frames))) == 1 for frames in drawn)
        seen[num_frames] = {int(frames[1] - frames[0]) for frames in drawn}
    assert seen == {8: {1}, 15: {1, 2}, 22: {1, 2, 3}, 100: {1, 2, 3, 4, 5}}
    with pytest.raises(ValueError, match="num_frames must be at least 8, got 7"):
        objective.draw(7, np.zeros(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("clip_frames", 1), ("max_stride", 0), ("num_patches", 0), ("hidden", 0), ("height", 1), ("width", 1)),
        ("channels", 0),
    ],
)
def test_arguments_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        Ctp(**{name: value})
