import dataclasses
from math import log

import numpy as np
import pytest
import torch
from batches import batch_of
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.encoder import Encoder
from fedssl.models.image import small_resnet
from fedssl.objectives.essl import Essl
from fedssl.objectives.objective import Batch, Draw, Objective, Population, Role, Step
from fedssl.objectives.rotnet import rotations
from fedssl.privacy.contract import PrivacyContract


class Host(Objective):
    """Pulls two views together, and counts its calls."""

    contract = PrivacyContract("queue", frozenset({"queue"}))
    views: tuple[Role, ...] = ("full", "light")
    min_batch = 2
    min_frames = 3
    num_uniforms = 1

    def __init__(self) -> None:
        self.calls: list[object] = []

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        start = int(uniforms[0] * num_frames)
        return Draw(np.array([[start], [0]]), target=7)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        return {"head": nn.Linear(encoder.feature_dim, 3), "queue": nn.Linear(1, population.num_examples)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        first, second = (model["head"](model["backbone"](view)) for view in batch.views)
        return Step((first - second).square().mean() + first.square().mean(), {"of-host": 3.0})

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        self.calls.append(first)

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        self.calls.append(progress)


def batch(number: int = 3, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(2, number, 1, 1, size, size, dtype=torch.float64, generator=generator)
    return batch_of(*views, torch.rand(number, 1, 1, 4, 4, dtype=torch.float64, generator=generator))


def model_of(objective: Objective) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(1, width=4, norm="group"), objective, 0, Population(2)).double()


def gradients(objective: Objective, what: Batch) -> dict[str, Tensor | None]:
    model = model_of(objective)
    objective.step(model, what).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if not name.startswith("rotation")}


def test_a_weight_of_zero_leaves_the_gradient_of_the_host_bit_for_bit() -> None:
    plain = gradients(Host(), dataclasses.replace(batch(), views=batch().views[:2]))
    hosted = gradients(Essl(Host(), weight=0.0, hidden=8), batch())
    assert plain.keys() == hosted.keys()
    for name, gradient in plain.items():
        assert gradient is hosted[name] is None or torch.equal(gradient, hosted[name])
    changed = gradients(Essl(Host(), weight=0.4, hidden=8), batch())
    assert not torch.equal(changed["backbone.body.0.0.weight"], plain["backbone.body.0.0.weight"])


def test_the_host_begins_with_the_tensors_it_would_have_alone() -> None:
    alone, hosted = model_of(Host()).state_dict(), model_of(Essl(Host(), hidden=8)).state_dict()
    assert all(torch.equal(tensor, hosted[name]) for name, tensor in alone.items())
    assert {name.split(".")[0] for name in hosted.keys() - alone.keys()} == {"rotation_head"}


def test_uniform_logits_add_the_weighted_log_of_four() -> None:
    objective = Essl(Host(), weight=0.4, hidden=8)
    model = model_of(objective)
    for parameter in model["rotation_head"][-1].parameters():
        nn.init.zeros_(parameter)
    step = objective.step(model, batch())
    host = objective.host.step(model, dataclasses.replace(batch(), views=batch().views[:2]))
    assert (step.loss - host.loss).item() == pytest.approx(0.4 * log(4), abs=1e-9)
    expected = {"of-host": 3.0, "rotation-loss": log(4), "rotation-accuracy": 0.25}
    assert step.metrics == pytest.approx(expected, abs=1e-9)


def test_the_added_loss_is_that_of_a_slow_loop_over_examples_and_angles() -> None:
    objective = Essl(Host(), weight=0.7, hidden=8)
    model, what = model_of(objective), batch()
    host = objective.host.step(model, dataclasses.replace(what, views=what.views[:2])).loss
    slow = []
    for clip in what.views[2]:
        for turn in range(4):
            logits = model["rotation_head"](model["backbone"](clip.rot90(turn, (2, 3))[None]))[0]
            slow.append((logits.exp().sum().log() - logits[turn]).item())
    expected = host.item() + 0.7 * sum(slow) / 12
    assert objective.step(model, what).loss.item() == pytest.approx(expected, abs=1e-9)


def test_the_head_has_two_hidden_layers_of_layer_normalisation() -> None:
    head = model_of(Essl(Host(), hidden=8))["rotation_head"]
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]
    assert head[-1].out_features == 4


def test_four_quarter_turns_of_the_local_view_are_the_identity() -> None:
    local = batch().views[2]
    quarter = rotations(local)[0][3:6]
    assert torch.equal(quarter.rot90(3, (3, 4)), local)


def test_what_the_host_promises_and_does_is_passed_on() -> None:
    host = Host()
    objective = Essl(host)
    assert objective.contract == host.contract
    assert objective.views == ("full", "light", "local")
    assert (objective.min_batch, objective.min_frames, objective.num_uniforms) == (2, 3, 1)
    draw = objective.draw(10, np.array([0.5]))
    assert draw.frames.tolist() == [[5], [0], [5]]
    assert draw.target == 7
    objective.begin_round(nn.ModuleDict(), first=True)
    objective.after_step(nn.ModuleDict(), 0.25)
    assert host.calls == [True, 0.25]


def test_equal_examples_and_zeros_have_finite_gradients() -> None:
    zeros = batch_of(*(torch.zeros_like(view[:1]) for view in batch().views))
    found = gradients(Essl(Host(), hidden=8), zeros)
    assert all(gradient is None or torch.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize(("name", "value"), [("weight", -0.1), ("hidden", 0)])
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        Essl(Host(), **{name: value})


def test_a_host_that_tells_rotations_already_is_refused() -> None:
    with pytest.raises(ValueError, match="host must have no group rotation_head, got Essl"):
        model_of(Essl(Essl(Host(), hidden=8), hidden=8))
