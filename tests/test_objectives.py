"""What every objective promises: its groups, its coupling, its smallest batch, and a round that stays finite."""

import atexit
import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedssl.compose import groups, load
from fedssl.config import RunConfig, build
from fedssl.models import bundle
from fedssl.objectives.objective import UNKNOWN, Batch, Objective
from fedssl.objectives.semifl import SemiFL
from fedssl.report.rundir import RunDirectory
from fedssl.training.loop import Examples, Stream, make_batch
from fedssl.workspace import Workspace

OF_CLIPS = ("vcop", "speed", "cvrl", "ctp", "video_mae", "croco", "rho_clips")
IMAGES = [name for name in groups()["objective"] if name not in OF_CLIPS]
SETTINGS = ["experiment=quickstart_images", "model.width=4", "model.norm=group"]
ACCEPTING = "objective.rule.threshold=0"  # an untrained classifier is sure of nothing
OWN: Mapping[str, Sequence[str]] = {
    "pseudo_label": [ACCEPTING, "objective.ramp=0"],
    "fed_consist": [ACCEPTING, "objective.ramp=0"],
    "semireward": ["objective.rule.rule.threshold=0"],
    **{name: [ACCEPTING] for name in ("fixmatch", "flexmatch", "prg", "twinsight")},
}
COUPLED_ELSEWHERE = ("flexmatch", "semireward")  # it shows after many batches: test_semi_supervised, test_semi_reward


@cache
def encoder_file() -> str:
    """An encoder of the same architecture, for an objective that begins with one."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    RunDirectory(Path(folder)).write_model(Workspace(load([*SETTINGS, "objective=supervised"])).initial)
    return f"{folder}/encoder.safetensors"


def config(name: str) -> RunConfig:
    words = [*SETTINGS, f"objective={name}", *OWN.get(name, ())]
    if name == "wad":
        words.append(f"objective.rule.teacher={encoder_file()}")
    made = load(words)
    return load([*words, "objective.norm=group"]) if "norm" in made.components["objective"] else made


class Case:
    """An objective with its bundle and batches of real digits, in double precision."""

    def __init__(self, name: str) -> None:
        self.every = 4 if name == "semifl" else 2  # of its pairs the first is labelled, and a pair has another partner
        self.workspace = Workspace(config(name))
        self.objective: Objective = self.workspace.objective
        if isinstance(self.objective, SemiFL):  # its client says what unlabelled examples are taken for
            self.objective = self.objective.with_partners(torch.zeros(64, dtype=torch.int64))
        self.model: nn.ModuleDict = self.workspace.model.double()
        self.objective.begin_round(self.model, first=True)
        if "classifier" in self.model:  # a trained one is surer than one that was just drawn
            with torch.no_grad():
                self.model["classifier"].weight.mul_(40)
        if "relations" in self.model:  # what its server would send
            self.model["relations"].received.fill_(0.1)
            self.model["relations"].known.fill_(True)
        if "centroids" in self.model:
            self.model["centroids"].weight.copy_(torch.eye(*self.model["centroids"].weight.shape))

    def batch(self, places: list[int]) -> Batch:
        indices = np.arange(64)
        train = self.workspace.splits.train
        labels = np.where(indices % self.every == 0, train.labels[indices], UNKNOWN)
        examples = Examples(train, indices, build(self.workspace.config, "augmentation"), labels)
        made = make_batch(self.objective, examples, np.array(places), Stream(0, 0, 1), 0, torch.device("cpu"))
        return dataclasses.replace(made, views=tuple(view.double() for view in made.views))

    def loss(self, places: list[int]) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.objective.step(self.model, self.batch(places)).loss

    def gradient(self, places: list[int]) -> Tensor:
        self.model.zero_grad()
        self.loss(places).backward()
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])


@pytest.mark.parametrize("name", IMAGES)
def test_every_tensor_belongs_to_one_group_and_private_groups_are_never_shared(name: str) -> None:
    case = Case(name)
    names = [tensor for group in case.model for tensor in bundle.arrays(case.model, [group])]
    assert sorted(names) == sorted(case.model.state_dict())
    private = case.objective.contract.private_groups
    assert private <= set(case.model)
    assert not {tensor.split(".")[0] for tensor in case.workspace.shared(None)} & private
    for group in private & {"teacher"}:
        assert not any(parameter.requires_grad for parameter in case.model[group].parameters())


@pytest.mark.parametrize("name", [name for name in IMAGES if name not in COUPLED_ELSEWHERE])
def test_the_coupling_is_as_declared(name: str) -> None:
    case = Case(name)
    case.model.eval()
    size, coupling = case.objective.min_batch, case.objective.contract.coupling
    if coupling == "per_example":
        assert size == 1
    size += size % 2  # as many labelled examples as unlabelled ones
    first, second = list(range(size)), list(range(size, 2 * size))
    whole = case.gradient([*first, *second])
    halves = (case.gradient(first) + case.gradient(second)) / 2
    if coupling == "per_example":
        torch.testing.assert_close(whole, halves, rtol=1e-5, atol=1e-8)
    elif coupling == "batch":
        assert not torch.allclose(whole, halves, rtol=1e-3)
    else:  # a queue or other statistics: what came before changes the gradient of the same batch
        case.objective.after_step(case.model, 0.01)
        for start in (8, 16, 24, 32):
            case.loss([*range(start, start + 8)])
            case.objective.after_step(case.model, 0.5)
        if "centroids" in case.model:  # its server makes them from the features of all clients
            case.model["centroids"].weight[0, 0] += 1
        if name == "prg":  # whose examples would have to change their classes
            case.model["rule"].changes[:, :, 0] += 1
        assert not torch.allclose(whole, case.gradient([*first, *second]))


@pytest.mark.parametrize("name", IMAGES)
def test_the_smallest_batch_gives_a_finite_loss_and_finite_gradients(name: str) -> None:
    case = Case(name)
    case.model.train()
    assert torch.isfinite(case.gradient(list(range(case.objective.min_batch)))).all()


@pytest.mark.parametrize("name", IMAGES)
def test_a_few_steps_move_the_backbone_and_leave_every_tensor_finite(name: str) -> None:
    case = Case(name)
    case.model.train()
    optimizer = torch.optim.SGD((p for p in case.model.parameters() if p.requires_grad), lr=0.01)
    before = bundle.arrays(case.model, ["backbone"])
    for start in (0, 32):
        optimizer.zero_grad()
        case.loss(list(range(start, start + 32))).backward()
        optimizer.step()
        case.objective.after_step(case.model, start / 32)
    after = bundle.arrays(case.model, None)
    assert all(np.isfinite(array).all() for array in after.values())
    assert any((after[tensor] != array).any() for tensor, array in before.items())
