from itertools import combinations

import numpy as np
import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.small3d import small3d
from fedssl.objectives.byol import Byol, byol_loss
from fedssl.objectives.nt_xent import nt_xent
from fedssl.objectives.objective import Objective
from fedssl.objectives.rho_clips import RhoClips
from fedssl.objectives.rotnet import RotNet, rotations
from fedssl.objectives.simclr import SimClr
from fedssl.objectives.simsiam import SimSiam
from fedssl.objectives.swav import Swav
from fedssl.objectives.vcop import Vcop

simclr = SimClr(hidden=8, dim=4)
byol = Byol(hidden=8, dim=4, norm="none")
simsiam = SimSiam(8, 8, 8, "none")
HOSTS = pytest.mark.parametrize("host", [simclr, byol, simsiam], ids=["simclr", "byol", "simsiam"])


def model_of(objective: Objective) -> nn.ModuleDict:
    return build_bundle(lambda: small3d(width=2), objective, seed=0).eval()


def clips(rho: int, number: int = 3) -> tuple[Tensor, ...]:
    return tuple(torch.rand(rho, number, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0)))


@HOSTS
@pytest.mark.parametrize("rho", [2, 3, 4])
def test_equal_clips_cost_what_two_equal_views_cost_the_host(host: Objective, rho: int) -> None:
    objective = RhoClips(host, rho, clip_frames=4)
    model, (clip,) = model_of(objective), clips(1)
    alone = host.step(model, batch_of(clip, clip)).loss
    uniforms = torch.zeros(3, rho, dtype=torch.float64)
    torch.testing.assert_close(objective.step(model, batch_of(*[clip] * rho, uniforms=uniforms)).loss, alone)


def test_two_clips_cost_what_the_embeddings_of_two_views_cost() -> None:
    for host in (simclr, byol):
        objective = RhoClips(host, 2, clip_frames=4)
        model, views = model_of(objective), clips(2)
        embedded = [model["projector"](model["backbone"](view)) for view in views]
        expected = nt_xent(*embedded, simclr.temperature)
        if host is byol:
            teacher = model["teacher"]
            targets = [teacher["projector"](teacher["backbone"](view)) for view in views]
            expected = byol_loss(*(model["predictor"](each) for each in embedded), *targets)
        step = objective.step(model, batch_of(*views, uniforms=torch.zeros(3, 2, dtype=torch.float64)))
        torch.testing.assert_close(step.loss, expected)


@HOSTS
def test_several_clips_cost_the_mean_over_ordered_pairs(host: Objective) -> None:
    objective = RhoClips(host, 3, clip_frames=4)
    model, views = model_of(objective), clips(3)
    pairs = [pair for i, j in combinations(range(3), 2) for pair in ((i, j), (j, i))]
    losses = [host.step(model, batch_of(views[i], views[j])).loss for i, j in pairs]
    step = objective.step(model, batch_of(*views, uniforms=torch.zeros(3, 3, dtype=torch.float64)))
    torch.testing.assert_close(step.loss, torch.stack(losses).mean())
    assert set(step.metrics) == set(host.step(model, batch_of(*views[:2])).metrics)


def test_clips_begin_anywhere_apart_from_each_other_and_inside() -> None:
    objective, rng = RhoClips(simclr, 3, clip_frames=4, stride=2), np.random.default_rng(0)
    starts = np.stack([objective.draw(27, rng.random(3)).frames[:, 0] for _ in range(2000)])
    assert set(starts.flatten()) == set(range(21))
    assert abs(np.corrcoef(starts.T)[np.triu_indices(3, 1)]).max() < 0.1
    assert objective.draw(5, np.zeros(3)).frames.tolist() == [[0, 1, 2, 3]] * 3
    with pytest.raises(ValueError, match="num_frames must be at least 4, got 3"):
        objective.draw(3, np.zeros(3))


def test_rotnet_turns_all_frames_of_a_clip_alike() -> None:
    (clip,) = clips(1, 2)
    rotated, turns = rotations(clip)
    for frame in range(4):
        alone, same = rotations(clip[:, :, frame : frame + 1])
        assert torch.equal(rotated[:, :, frame], alone[:, :, 0])
        assert torch.equal(turns, same)
    objective = RhoClips(RotNet(), 1, clip_frames=4)
    model = model_of(objective)
    step = objective.step(model, batch_of(clip, uniforms=torch.zeros(2, 1, dtype=torch.float64)))
    torch.testing.assert_close(step.loss, RotNet().step(model, batch_of(clip)).loss)
    assert objective.draw(9, np.array([0.5])).frames.tolist() == [[3, 4, 5, 6]]


def test_promises_are_those_of_the_host() -> None:
    objective = RhoClips(Byol(hidden=8, dim=4), 4)
    assert objective.contract == Byol().contract
    assert (objective.min_batch, objective.views, objective.min_frames) == (2, ("full",) * 4, 8)
    model = model_of(objective)
    with torch.no_grad():
        model["projector"][0].weight.add_(1.0)
    objective.begin_round(model, first=True)
    assert torch.equal(model["teacher"]["projector"][0].weight, model["projector"][0].weight)
    before = model["teacher"]["projector"][0].weight.clone()
    with torch.no_grad():
        model["projector"][0].weight.add_(1.0)
    objective.after_step(model, 0.0)
    torch.testing.assert_close(model["teacher"]["projector"][0].weight, before + 0.01)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"host": Vcop()}, "host must be .*, got Vcop"),
        ({"host": Swav(num_local=2)}, "host must be .*, got Swav"),
        ({"rho": 1}, "rho must be at least 2 for SimClr, got 1"),
        ({"host": RotNet(), "rho": 2}, "rho must be 1 for RotNet, got 2"),
        ({"clip_frames": 0}, "clip_frames must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RhoClips(**{"host": simclr, **arguments})
