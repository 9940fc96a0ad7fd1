"""A second network beside the first: another draw of its encoder, and what it says while its own objective runs it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedssl.models.encoder import Encoder


@torch.no_grad()
def redrawn(encoder: Encoder) -> Encoder:
    """Return another draw of a freshly initialised encoder, by PyTorch's generator.

    The entries of each tensor of a layer change places, which leaves independent draws of one distribution what they
    are, and constants equal. Tensors outside of layers, such as the positions of patches, mean something where they
    are and stay.
    """
    other = copy.deepcopy(encoder)
    for module in other.modules():
        if hasattr(module, "reset_parameters") or hasattr(module, "_reset_parameters"):
            for parameter in module.parameters(recurse=False):
                order = torch.randperm(parameter.numel()).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


class Passed:
    """What passed a module, in the order of its calls; the outputs keep their graphs."""

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def hear(self, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Take down one call."""
        self._inputs.append(inputs[0])
        self._outputs.append(output)

    def first(self, rows: Tensor) -> Tensor:
        """Return the output for `rows` `[n, ...]`, which were the first to pass, in one call or in several.

        Raises:
            ValueError: Others were.
        """
        number = len(rows)
        heard = torch.cat(self._inputs)[:number] if self._inputs else rows[:0]
        if heard.shape != rows.shape or not torch.allclose(heard, rows, rtol=0, atol=0, equal_nan=True):
            raise ValueError("host must show its networks the first view before any other")
        return torch.cat(self._outputs)[:number]


@contextmanager
def listening(module: nn.Module) -> Iterator[Passed]:
    """Hear what passes `module`, so that nothing has to pass it twice."""
    passed = Passed()
    handle = module.register_forward_hook(passed.hear)
    try:
        yield passed
    finally:
        handle.remove()
