from math import log

import numpy as np
import pytest
import torch
from batches import batch_of

from fedssl.models.bundle import build_bundle
from fedssl.models.small3d import small3d
from fedssl.objectives.answer import answer_loss
from fedssl.objectives.speed import Speed


@pytest.mark.parametrize(("mode", "classes"), [("pace", 4), ("speed7", 7)])
def test_uniform_logits_cost_the_log_of_the_strides(mode: str, classes: int) -> None:
    assert len(Speed(mode=mode).strides) == classes
    logits = torch.zeros(3, classes, dtype=torch.float64)
    assert answer_loss(logits, torch.arange(3)).item() == pytest.approx(log(classes), abs=1e-9)


def test_the_strides_are_those_of_the_papers() -> None:
    assert Speed().strides == (1, 2, 3, 4)
    assert Speed(mode="speed7").strides == (-4, -2, -1, 0, 1, 2, 4)


@pytest.mark.parametrize("mode", ["pace", "speed7"])
def test_the_target_is_the_stride_of_the_frames(mode: str) -> None:
    objective, rng, seen = Speed(mode=mode), np.random.default_rng(0), set()
    for _ in range(200):
        draw = objective.draw(40, rng.random(2))
        assert draw.frames.shape == (1, 8)
        assert draw.frames.dtype == np.int64
        assert (np.diff(draw.frames[0]) == objective.strides[draw.target]).all()
        assert draw.frames.min() >= 0
        assert draw.frames.max() < 40
        seen.add(draw.target)
    assert seen == set(range(len(objective.strides)))


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_negative_stride_is_the_positive_one_reversed(stride: int) -> None:
    objective = Speed(mode="speed7")
    for num_frames in (8, 20, 40):
        forward = objective.frames(num_frames, 2, stride)
        assert forward.tolist() == [min(2 + stride * i, num_frames - 1) for i in range(8)]
        assert objective.frames(num_frames, 2, -stride).tolist() == forward[::-1].tolist()


def test_stride_zero_repeats_a_frame() -> None:
    assert Speed(mode="speed7").frames(20, 5, 0).tolist() == [5] * 8


def test_pace_goes_round() -> None:
    assert Speed().frames(10, 0, 3).tolist() == [0, 3, 6, 9, 2, 5, 8, 1]


def test_a_video_of_the_span_has_one_start() -> None:
    objective, rng = Speed(), np.random.default_rng(1)
    drawn = [objective.draw(1 + 7 * 4, rng.random(2)) for _ in range(100)]
    assert {int(draw.frames[0, 0]) for draw in drawn if objective.strides[draw.target] == 4} == {0}
    assert len({int(draw.frames[0, 0]) for draw in drawn if objective.strides[draw.target] == 1}) > 5


@pytest.mark.parametrize(("mode", "classes"), [("pace", 4), ("speed7", 7)])
def test_a_zero_head_costs_the_log(mode: str, classes: int) -> None:
    objective = Speed(mode=mode)
    model = build_bundle(lambda: small3d(width=2), objective, seed=0)
    for parameter in model["head"].parameters():
        torch.nn.init.zeros_(parameter)
    batch = batch_of(torch.rand(2, 1, 8, 16, 16), targets=torch.tensor([0, 3]))
    step = objective.step(model, batch)
    step.loss.backward()
    assert step.loss.item() == pytest.approx(log(classes), abs=1e-6)
    assert step.metrics == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("mode", "fast", "mode must be one of pace, speed7, got fast"),
        ("clip_frames", 1, "clip_frames must be at least 2, got 1"),
        ("dropout", -0.1, "dropout must be in"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Speed(**{name: value})


def test_a_short_video_is_refused() -> None:
    with pytest.raises(ValueError, match="num_frames must be at least 8, got 7"):
        Speed().draw(7, np.zeros(2))
