"""Balanced assignments by Sinkhorn's iteration (Cuturi 2013; for clustering Asano 2020)."""

import torch
from torch import Tensor


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, balance: float = 1.0) -> Tensor:
    """Return a soft assignment of rows to columns that uses every column about as much.

    Args:
        scores: `[n, k]`, the higher the better a row fits a column.
        epsilon: Above 0; the smaller, the harder the assignment.
        iterations: At least 1; the columns even out with their number.
        balance: From 1, every column gets the same share, down to 0, each row goes where it fits best. In between a
            column's share is paid for: its scale is raised to this power (Chizat 2018, "unbalanced" transport).

    Returns:
        `[n, k]` without gradient, in float32 or better: rows sum to 1, columns (when `balance` is 1) to about n / k.
    """
    # logarithms: the exponential of a score over a small epsilon overflows, or empties a column
    logs = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    rows = torch.zeros_like(logs[:, :1])
    for _ in range(iterations):
        columns = -balance * (logs + rows).logsumexp(dim=0)
        rows = -(logs + columns).logsumexp(dim=1, keepdim=True)
    return (logs + rows + columns).exp()
