"""LARS: steps that a reader can check by hand."""

import pytest
import torch
from torch import nn

from fedssl.training.lars import Lars


def stepped(value: torch.Tensor, gradient: torch.Tensor, steps: int = 1, **arguments: float) -> torch.Tensor:
    parameter = nn.Parameter(value.clone())
    optimizer = Lars([parameter], **arguments)
    for _ in range(steps):
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach() - value


def test_a_long_gradient_moves_a_layer_by_a_share_of_its_length() -> None:
    step = stepped(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 100.0]]), lr=0.1, weight_decay=0, trust=0.02)
    torch.testing.assert_close(step, torch.tensor([[0.0, -0.02 * 5]]))


def test_a_short_gradient_takes_the_plain_step() -> None:
    step = stepped(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.5]]), lr=0.1, weight_decay=0, trust=0.02)
    torch.testing.assert_close(step, torch.tensor([[0.0, -0.05]]))


def test_biases_take_plain_steps_without_decay() -> None:
    step = stepped(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 100.0]), lr=0.1, weight_decay=1.0)
    torch.testing.assert_close(step, torch.tensor([0.0, -10.0]))


def test_decay_is_part_of_the_gradient_and_momentum_adds_up() -> None:
    value, gradient = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    torch.testing.assert_close(stepped(value, gradient, lr=0.01, weight_decay=0.1), torch.tensor([[-0.001, 0.0]]))
    bias = stepped(torch.tensor([0.0]), torch.tensor([1.0]), steps=2, lr=0.1, momentum=0.5)
    torch.testing.assert_close(bias, torch.tensor([-0.1 - 0.15]))


def test_a_tensor_of_zeros_still_learns() -> None:
    step = stepped(torch.zeros(1, 2), torch.ones(1, 2), lr=0.1)
    torch.testing.assert_close(step, torch.full((1, 2), -0.1))


@pytest.mark.parametrize(("name", "value"), [("lr", -1), ("momentum", -1), ("weight_decay", -1), ("trust", 0)])
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        Lars([nn.Parameter(torch.zeros(1))], **{name: value})
