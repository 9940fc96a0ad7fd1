"""What every objective of clips promises: its groups, its coupling, its smallest batch, and steps that stay finite."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from fedssl.compose import load
from fedssl.config import build
from fedssl.models import bundle
from fedssl.training.loop import Examples, Stream, make_batch
from fedssl.workspace import Workspace

SETTINGS = ("data.num_train=16", "data.num_test=8", "partition.num_clients=2", "cohort=2", "model.width=4")
SMALL = ("objective.hidden=8",)
WORDS = {
    "vcop": [*SETTINGS, "objective=vcop", *SMALL],
    "speed": [*SETTINGS, "objective=speed", "objective.dropout=0"],
    "speed7": [*SETTINGS, "objective=speed", "objective.mode=speed7", "objective.dropout=0"],
    "cvrl": [*SETTINGS, "objective=cvrl"],
    "ctp": [*SETTINGS, "objective=ctp", *SMALL],
    "video_mae": [*SETTINGS[:-1], "objective=video_mae", "model=video_vit_tiny", "model.depth=1"],
    "croco": [*SETTINGS[:-1], "objective=croco", "model=vit_tiny", "model.depth=1"],
    "byol": [*SETTINGS, "objective=rho_clips", "objective.rho=3", "objective.host.norm=group"],
    "simclr": [*SETTINGS, "objective=rho_clips", "objective@objective.host=simclr"],
    "rotnet": [*SETTINGS, "objective=rho_clips", "objective@objective.host=rotnet", "objective.rho=1"],
    "rotnet of whole videos": [*SETTINGS, "objective=rotnet"],
}
EVERY = pytest.mark.parametrize("name", WORDS)


class Case:
    """An objective with its bundle and batches of moving digits, in double precision."""

    def __init__(self, name: str) -> None:
        self.workspace = Workspace(load(WORDS[name]))
        self.objective = self.workspace.objective
        self.model = self.workspace.model.double()
        self.objective.begin_round(self.model, first=True)

    def loss(self, places: list[int]) -> Tensor:
        train = self.workspace.splits.train
        examples = Examples(train, np.arange(16), build(self.workspace.config, "augmentation"))
        made = make_batch(self.objective, examples, np.array(places), Stream(0, 0, 1), 0, torch.device("cpu"))
        made = dataclasses.replace(made, views=tuple(view.double() for view in made.views))
        return self.objective.step(self.model, made).loss

    def gradient(self, places: list[int]) -> Tensor:
        self.model.zero_grad()
        self.loss(places).backward()
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])


@EVERY
def test_every_tensor_belongs_to_one_group_and_private_groups_are_never_shared(name: str) -> None:
    case = Case(name)
    names = [tensor for group in case.model for tensor in bundle.arrays(case.model, [group])]
    assert sorted(names) == sorted(case.model.state_dict())
    private = case.objective.contract.private_groups
    assert private <= set(case.model)
    assert not {tensor.split(".")[0] for tensor in case.workspace.shared(None)} & private


@EVERY
def test_the_coupling_is_as_declared(name: str) -> None:
    case = Case(name)
    case.model.eval()
    first, second = [0, 1], [2, 3]
    whole, halves = case.gradient([*first, *second]), (case.gradient(first) + case.gradient(second)) / 2
    if case.objective.contract.coupling == "per_example":
        torch.testing.assert_close(whole, halves, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(case.gradient(first), (case.gradient([0]) + case.gradient([1])) / 2)
    else:
        assert not torch.allclose(whole, halves, rtol=1e-3)


@EVERY
def test_the_smallest_batch_gives_finite_gradients_and_steps_move_the_backbone(name: str) -> None:
    case = Case(name)
    case.model.train()
    before = bundle.arrays(case.model, ["backbone"])
    assert torch.isfinite(case.gradient(list(range(case.objective.min_batch)))).all()
    optimizer = torch.optim.SGD((p for p in case.model.parameters() if p.requires_grad), lr=0.01)
    for _ in range(2):
        case.gradient(list(range(8)))
        optimizer.step()
        case.objective.after_step(case.model, 0.1)
    after = bundle.arrays(case.model, None)
    assert all(np.isfinite(array).all() for array in after.values())
    assert any((after[tensor] != array).any() for tensor, array in before.items())
