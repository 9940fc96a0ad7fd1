from math import log

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.answer import answer_loss, answer_step
from fedssl.objectives.rotnet import RotNet, rotations


def images(number: int = 3, size: int = 8) -> Tensor:
    return torch.rand(number, 1, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def model_of(objective: RotNet) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(1, width=4, norm="group"), objective, seed=0).double()


def test_uniform_logits_cost_log_four() -> None:
    logits = torch.zeros(8, 4, dtype=torch.float64)
    assert answer_loss(logits, torch.arange(8) % 4).item() == pytest.approx(log(4), abs=1e-9)


def test_a_head_of_zeros_costs_log_four_and_is_right_for_a_quarter() -> None:
    objective = RotNet()
    model = model_of(objective)
    for parameter in model["head"].parameters():
        nn.init.zeros_(parameter)
    step = objective.step(model, batch_of(images(5)))
    assert step.loss.item() == pytest.approx(log(4), abs=1e-9)
    assert step.metrics == {"accuracy": 0.25}


@pytest.mark.parametrize("answer", range(4))
def test_a_constant_answer_is_right_for_exactly_a_quarter(answer: int) -> None:
    _, turns = rotations(images(7))
    logits = torch.eye(4)[answer].expand(28, -1)
    assert answer_step(logits, turns).metrics["accuracy"] == 0.25


def test_four_turns_are_the_identity() -> None:
    clips = images(2)
    turned = clips
    for _ in range(4):
        turned = rotations(turned)[0][2:4]  # each clip, a quarter turned
    assert torch.equal(turned, clips)


def test_each_rotation_is_that_of_its_number_of_turns() -> None:
    clips = images(2, size=3)
    rotated, turns = rotations(clips)
    assert turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for place, turn in enumerate(turns.tolist()):
        for row in range(3):
            for column in range(3):
                seen = (row, column)
                for _ in range(turn):
                    seen = (seen[1], 2 - seen[0])  # where a pixel was before a quarter turn to the left
                assert rotated[place, 0, 0, row, column] == clips[place % 2, 0, 0, *seen]


def test_the_loss_is_the_mean_over_examples_of_that_of_each_alone() -> None:
    objective, clips = RotNet(), images(3)
    model = model_of(objective)
    parameters = list(model.parameters())
    together = torch.autograd.grad(objective.step(model, batch_of(clips)).loss, parameters)
    alone = [torch.autograd.grad(objective.step(model, batch_of(clip[None])).loss, parameters) for clip in clips]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0), rtol=1e-5, atol=1e-9)


def test_the_loss_is_that_of_a_slow_loop_and_has_its_gradient() -> None:
    logits = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turns = torch.arange(4)
    slow = [-float(row[turn] - row.exp().sum().log()) for row, turn in zip(logits, turns, strict=True)]
    assert answer_loss(logits, turns).item() == pytest.approx(sum(slow) / 4, abs=1e-9)
    assert torch.autograd.gradcheck(lambda rows: answer_loss(rows, turns), logits.requires_grad_())


@pytest.mark.parametrize("clips", [torch.zeros(1, 1, 1, 8, 8), torch.ones(4, 1, 1, 8, 8)])
def test_one_example_and_equal_ones_have_finite_gradients(clips: Tensor) -> None:
    objective = RotNet()
    model = model_of(objective)
    objective.step(model, batch_of(clips.double())).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_clips_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match="height must be the width to be rotated, got 4x6"):
        rotations(torch.zeros(1, 1, 1, 4, 6))
