"""The numbers that modules compute in: bfloat16 on GPUs that have it (Kalamkar 2019), or float32.

Weights, their gradients, what modules answer and the losses of it are float32.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fedssl.objectives.objective import Batch

Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise ValueError if the device has no bfloat16 that can be relied on, and is asked for it."""
    # not a CPU: there, gradients of 3D convolutions in bfloat16 are not finite at times, and differ from call to call
    if precision == "float32" or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)):
        return
    where = "the CPU, choose a GPU by engine.num_gpus_per_client" if device.type == "cpu" else "this GPU"
    raise ValueError(f"precision must be float32 on {where}, got {precision}")


@contextmanager
def computing(model: nn.Module, precision: Precision, device: torch.device) -> Iterator[None]:
    """Let modules inside the block multiply and convolve in this precision.

    Raises:
        ValueError: See `check_precision`.
    """
    check_precision(precision, device)
    with in_bfloat16(model, device) if precision == "bf16" else ExitStack():
        yield


@contextmanager
def in_bfloat16(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let modules inside the block multiply and convolve in bfloat16; what the outermost one answers is float32."""
    calls = _Calls(device)
    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(calls.begin).remove)
            hooks.callback(module.register_forward_hook(calls.end, always_call=True).remove)
        yield


def laid_out(batch: Batch, precision: Precision) -> Batch:
    """Return the batch as a GPU is fastest with it: in bfloat16 with channels last, else as it is."""
    if precision == "float32":
        return batch
    return replace(batch, views=tuple(view.contiguous(memory_format=torch.channels_last_3d) for view in batch.views))


@dataclass
class _Calls:
    """The modules that are being called, one inside another."""

    device: torch.device
    depth: int = 0
    entered: ExitStack = field(default_factory=ExitStack)

    def begin(self, module: nn.Module, inputs: object) -> None:
        if self.depth == 0:
            self.entered.enter_context(torch.autocast(self.device.type, torch.bfloat16))
        self.depth += 1

    def end(self, module: nn.Module, inputs: object, output: object) -> object:
        self.depth -= 1
        if self.depth:
            return output
        self.entered.close()
        return _whole(output)


def _whole(output: object) -> object:
    """Return tensors of bfloat16 as float32."""
    if isinstance(output, tuple):
        return tuple(map(_whole, output))
    return output.float() if isinstance(output, Tensor) and output.dtype == torch.bfloat16 else output
