from math import exp, log

import numpy as np
import pytest
import torch
from batches import batch_of

from fedssl.models.bundle import build_bundle
from fedssl.models.small3d import small3d
from fedssl.objectives.cvrl import Cvrl
from fedssl.objectives.nt_xent import nt_xent

TEMPERATURE = 0.2


def test_the_loss_of_equal_embeddings_is_the_log_of_all_others() -> None:
    same = torch.ones(5, 3, dtype=torch.float64)
    assert nt_xent(same, same, TEMPERATURE).item() == pytest.approx(log(9), abs=1e-9)


def test_the_loss_of_orthonormal_pairs_is_known() -> None:
    pairs = torch.eye(4, dtype=torch.float64)
    expected = log(1 + 6 * exp(-1 / TEMPERATURE))
    assert nt_xent(pairs, 3 * pairs, TEMPERATURE).item() == pytest.approx(expected, abs=1e-9)


def test_the_loss_of_two_antipodal_pairs_is_known() -> None:
    pairs = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert nt_xent(pairs, pairs, TEMPERATURE).item() == pytest.approx(log(1 + 2 * exp(-2 / TEMPERATURE)), abs=1e-9)


def test_one_example_has_nothing_to_be_told_from() -> None:
    one = torch.ones(1, 3, dtype=torch.float64)
    assert nt_xent(one, one, TEMPERATURE).item() == pytest.approx(0, abs=1e-12)


def test_the_loss_does_not_depend_on_order_or_on_which_view_is_first() -> None:
    first, second = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = nt_xent(first, second, TEMPERATURE).item()
    assert nt_xent(second, first, TEMPERATURE).item() == pytest.approx(loss, abs=1e-12)
    assert nt_xent(first.flip(0), second.flip(0), TEMPERATURE).item() == pytest.approx(loss, abs=1e-12)


def test_the_loss_is_that_of_a_slow_loop_and_has_its_gradient() -> None:
    pairs = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = [row / row.norm() for row in pairs.flatten(0, 1)]
    losses = []
    for i, row in enumerate(rows):
        others = [exp(float(row @ rows[j]) / TEMPERATURE) for j in range(6) if j != i]
        losses.append(-log(exp(float(row @ rows[(i + 3) % 6]) / TEMPERATURE) / sum(others)))
    assert nt_xent(*pairs, TEMPERATURE).item() == pytest.approx(sum(losses) / 6, abs=1e-9)
    assert torch.autograd.gradcheck(lambda both: nt_xent(*both, TEMPERATURE), pairs.requires_grad_())


def test_clips_lie_in_the_video_and_near_ones_are_likelier() -> None:
    objective, rng = Cvrl(clip_frames=8), np.random.default_rng(0)
    starts = np.stack([objective.draw(308, rng.random(3)).frames[:, 0] for _ in range(4000)])
    assert starts.min() >= 0
    assert starts.max() <= 300
    assert np.abs(np.diff(starts)).mean() == pytest.approx(100, abs=4)  # a third of the greatest offset
    assert (np.diff(starts) > 0).mean() == pytest.approx(0.5, abs=0.05)


def test_a_video_as_long_as_a_clip_gives_the_clip_twice() -> None:
    frames = Cvrl(clip_frames=8).draw(8, np.random.default_rng(0).random(3)).frames
    assert (frames == np.arange(8)).all()
    with pytest.raises(ValueError, match="num_frames must be at least 8, got 7"):
        Cvrl(clip_frames=8).draw(7, np.zeros(3))


def test_a_step_compares_the_views_of_each_example() -> None:
    objective = Cvrl(hidden=8, dim=4)
    model = build_bundle(lambda: small3d(width=2), objective, seed=0).eval()
    views = tuple(torch.rand(2, 3, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0)))
    step = objective.step(model, batch_of(*views))
    embedded = [model["projector"](model["backbone"](view)) for view in views]
    torch.testing.assert_close(step.loss, nt_xent(*embedded, objective.temperature))


@pytest.mark.parametrize(("name", "value"), [("clip_frames", 0), ("hidden", 0), ("dim", 0), ("temperature", 0.0)])
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        Cvrl(**{name: value})
