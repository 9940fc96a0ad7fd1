"""The numbers that steps are computed in: bfloat16 on GPUs that have it (Kalamkar 2019), or float32.

Weights, their gradients, the optimizer's state and what is sent stay float32.
"""

from dataclasses import replace
from typing import Literal

import torch

from fedssl.objectives.objective import Batch

Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")


def computing(precision: Precision, device: torch.device) -> torch.autocast:
    """Return a context in which convolutions and products of matrices are computed in this precision.

    Raises:
        ValueError: The device has no bfloat16 that can be relied on.
    """
    wanted = precision == "bf16"
    # not a CPU: there, gradients of 3D convolutions in bfloat16 are not finite at times, and differ from call to call
    if wanted and not (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)):
        raise ValueError(f"precision must be float32 on a device without bfloat16 ({device.type}), got {precision}")
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def laid_out(batch: Batch, precision: Precision) -> Batch:
    """Return the batch as a GPU is fastest with it: in bfloat16 with channels last, else as it is."""
    if precision == "float32":
        return batch
    return replace(batch, views=tuple(view.contiguous(memory_format=torch.channels_last_3d) for view in batch.views))
