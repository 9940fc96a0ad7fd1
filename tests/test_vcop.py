from itertools import permutations
from math import factorial, log

import numpy as np
import pytest
import torch
from batches import batch_of

from fedssl.models.bundle import build_bundle
from fedssl.models.small3d import small3d
from fedssl.objectives.answer import answer_loss
from fedssl.objectives.vcop import Vcop, VcopHead


@pytest.mark.parametrize("num_clips", [2, 3, 4])
def test_uniform_logits_cost_the_log_of_the_orders(num_clips: int) -> None:
    orders = factorial(num_clips)
    logits = torch.full((5, orders), 0.3, dtype=torch.float64)
    assert answer_loss(logits, torch.arange(5) % orders).item() == pytest.approx(log(orders), abs=1e-9)


def test_a_zero_head_costs_log_6() -> None:
    model = build_bundle(lambda: small3d(width=2), Vcop(hidden=4), seed=0)
    for parameter in model["head"].parameters():
        torch.nn.init.zeros_(parameter)
    batch = batch_of(*torch.rand(3, 2, 1, 6, 16, 16), targets=torch.tensor([0, 5]))
    step = Vcop(hidden=4).step(model, batch)
    assert step.loss.item() == pytest.approx(log(6), abs=1e-6)
    assert step.metrics == {"accuracy": 0.5}


def test_the_span_counts_clips_and_gaps() -> None:
    assert Vcop(num_clips=3, clip_frames=16, gap_frames=8).span == 64
    assert Vcop(num_clips=4, clip_frames=5, gap_frames=1).span == 23


@pytest.mark.parametrize("num_frames", [6, 7, 15, 22, 40])
def test_the_target_is_the_order_of_the_clips(num_frames: int) -> None:
    objective, orders = Vcop(), list(permutations(range(3)))
    rng, seen = np.random.default_rng(0), {}
    for _ in range(100):
        draw = objective.draw(num_frames, rng.random(2))
        order = np.array(orders[draw.target])
        restored = draw.frames[np.argsort(order)]
        assert draw.frames.shape == (3, 6)
        assert draw.frames.dtype == np.int64
        assert (np.diff(restored[:, 0]) >= 0).all()
        assert (np.diff(draw.frames, axis=1) == 1).all()
        assert draw.frames.min() >= 0
        assert draw.frames.max() < num_frames
        seen[draw.target] = draw.frames
    assert sorted(seen) == list(range(6))
    assert (np.diff(seen[0][:, 0]) >= 0).all()


def test_long_videos_have_gaps_and_every_start() -> None:
    objective, starts = Vcop(), set()
    rng = np.random.default_rng(1)
    for _ in range(200):
        firsts = np.sort(objective.draw(25, rng.random(2)).frames[:, 0])
        assert np.diff(firsts).tolist() == [8, 8]
        starts.add(int(firsts[0]))
    assert starts == {0, 1, 2, 3}


def test_short_videos_have_evenly_spaced_clips() -> None:
    rng = np.random.default_rng(2)
    assert np.sort(Vcop().draw(14, rng.random(2)).frames[:, 0]).tolist() == [0, 4, 8]
    assert Vcop().draw(6, rng.random(2)).frames.tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    with pytest.raises(ValueError, match="num_frames must be at least 6, got 5"):
        Vcop().draw(5, rng.random(2))


def test_the_head_equals_a_loop_over_pairs() -> None:
    head = VcopHead(feature_dim=5, num_clips=3, hidden=4, dropout=0.5).eval()
    features = torch.rand(2, 3, 5)
    pairs = [
        torch.relu(head.compare[0](torch.cat((features[:, i], features[:, j]), 1))) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert torch.allclose(head(features), head.classify(torch.cat(pairs, 1)), atol=1e-6)


def test_the_loss_is_a_mean_over_videos() -> None:
    objective = Vcop(hidden=4)
    model = build_bundle(lambda: small3d(width=2), objective, seed=0).eval()
    views, targets = torch.rand(3, 3, 1, 6, 16, 16), torch.tensor([1, 4, 2])
    whole = objective.step(model, batch_of(*views, targets=targets)).loss
    parts = [objective.step(model, batch_of(*views[:, i : i + 1], targets=targets[i : i + 1])).loss for i in range(3)]
    assert torch.allclose(whole, torch.stack(parts).mean(), atol=1e-5)


def test_orders_of_distinct_clips_can_be_learnt() -> None:
    torch.manual_seed(0)
    objective, orders = Vcop(hidden=16, dropout=0.0), list(permutations(range(3)))
    model = build_bundle(lambda: small3d(width=2), objective, seed=0)
    clips = torch.stack([torch.full((1, 6, 16, 16), level) for level in (0.1, 0.5, 0.9)])
    views = torch.stack([clips[list(order)] for order in orders], dim=1)
    batch = batch_of(*views, targets=torch.arange(6))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        step = objective.step(model, batch)
        step.loss.backward()
        optimizer.step()
    assert step.metrics["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_clips", 1, "num_clips must be at least 2, got 1"),
        ("clip_frames", 0, "clip_frames must be at least 1, got 0"),
        ("gap_frames", -1, "gap_frames must be 0 or more, got -1"),
        ("hidden", 0, "hidden must be at least 1, got 0"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Vcop(**{name: value})
