"""Batches of views, for tests of objectives."""

import torch
from torch import Tensor

from fedssl.objectives.objective import UNKNOWN, Batch


def batch_of(
    *views: Tensor, targets: Tensor | None = None, uniforms: Tensor | None = None, labels: Tensor | None = None
) -> Batch:
    """Return a batch of the given views `[batch, channels, frames, height, width]`.

    Labels that are not given are unknown, everything else that is not given is zeros.
    """
    number = len(views[0])
    return Batch(
        views=views,
        targets=torch.zeros(number, dtype=torch.int64) if targets is None else targets,
        places=torch.arange(number),
        uniforms=torch.zeros(number, 0, dtype=torch.float64) if uniforms is None else uniforms,
        labels=torch.full((number,), UNKNOWN) if labels is None else labels,
    )
