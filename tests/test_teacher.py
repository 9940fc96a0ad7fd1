"""The teacher, the signs of collapse and the heads that objectives share."""

import math

import pytest
import torch
from torch import nn

from fedssl.models.heads import mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.teacher import Following, make_teacher


def model() -> nn.ModuleDict:
    backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return nn.ModuleDict({"backbone": backbone, "teacher": make_teacher(backbone=backbone)})


def test_a_teacher_of_a_still_network_closes_in_geometrically() -> None:
    bundle = model()
    follower, online = bundle["teacher"]["backbone"][0].weight, bundle["backbone"][0].weight
    with torch.no_grad():
        follower.add_(1.0)
    for _ in range(5):
        Following(start=0.9, end=0.9).after_step(bundle, 0.3)
    torch.testing.assert_close(follower - online, torch.full((4, 3), 0.9**5))


def test_momentum_rises_along_half_a_cosine() -> None:
    following = Following(start=0.99, end=1.0)
    assert [following.momentum(done) for done in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1.0])


@pytest.mark.parametrize(("on_round", "share"), [("reset", 0.0), ("keep", 1.0), ("ema_global", 0.9)])
def test_a_round_resets_keeps_or_moves_the_teacher(on_round: str, share: float) -> None:
    bundle = model()
    with torch.no_grad():
        bundle["teacher"]["backbone"][0].weight.add_(1.0)
    following = Following(start=0.9, on_round=on_round)
    following.begin_round(bundle, first=False)
    gap = bundle["teacher"]["backbone"][0].weight - bundle["backbone"][0].weight
    torch.testing.assert_close(gap, torch.full((4, 3), share))
    following.begin_round(bundle, first=True)
    assert torch.equal(bundle["teacher"]["backbone"][0].weight, bundle["backbone"][0].weight)


def test_buffers_are_copied_and_nothing_of_a_teacher_is_trained() -> None:
    bundle = model()
    bundle["backbone"](torch.rand(8, 3))
    Following(start=1.0).after_step(bundle, 0.0)
    assert torch.equal(bundle["teacher"]["backbone"][1].running_mean, bundle["backbone"][1].running_mean)
    assert not any(parameter.requires_grad for parameter in bundle["teacher"].parameters())


def test_collapse_is_told_from_spread() -> None:
    same = collapse(torch.ones(16, 8))
    assert same == pytest.approx({"embedding-std": 0, "embedding-rank": 1, "embedding-cosine": 1}, abs=1e-5)
    spread = collapse(torch.cat((torch.eye(8), -torch.eye(8))))
    expected = {"embedding-std": 1, "embedding-rank": 8, "embedding-cosine": -1 / 15}
    assert spread == pytest.approx(expected, abs=1e-5)
    noise = collapse(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)))
    assert noise["embedding-std"] == pytest.approx(1, abs=0.05)
    assert math.isfinite(sum(collapse(torch.zeros(3, 4)).values()))


def test_a_perceptron_normalises_what_it_is_told_to() -> None:
    kinds = [type(layer).__name__ for layer in mlp([4, 6, 8], "batch", last_norm=True)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert [type(layer).__name__ for layer in mlp([4, 6, 8], "none")] == ["Linear", "ReLU", "Linear"]
    head = mlp([4, 6, 8], "group", last_norm=True)
    assert (head[0].bias, head[-1].weight) == (None, None)
    rows = torch.rand(5, 4)
    torch.testing.assert_close(head(rows)[:1], head(rows[:1]))  # examples do not see each other
    with pytest.raises(ValueError, match="widths must be"):
        mlp([4])
