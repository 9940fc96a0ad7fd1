"""Projectors and predictors: small perceptrons on top of a pooled feature."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from fedssl.models.norms import group_norm

HeadNorm = Literal["batch", "group", "none"]


def mlp(widths: Sequence[int], norm: HeadNorm = "batch", *, last_norm: bool = False) -> nn.Sequential:
    """Return linear layers with a normalisation and a ReLU between them.

    Args:
        widths: `[in, hidden ..., out]`.
        norm: What normalises hidden layers; "batch" couples the examples of a batch, the others do not.
        last_norm: Whether the output is normalised too, without a scale and shift of its own.

    Raises:
        ValueError: A width is below 1, there are fewer than two, or the norm is unknown.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be at least two numbers of at least 1, got {list(widths)}")
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise(widths), 2):
        last = place == len(widths)
        normalised = norm != "none" and (last_norm or not last)
        layers.append(nn.Linear(before, after, bias=not normalised))
        if normalised:
            layers.append(_norm(norm, after, affine=not last))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _norm(norm: HeadNorm, width: int, *, affine: bool) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm1d(width, affine=affine)
    if norm == "group":
        return group_norm(width, affine=affine)
    raise ValueError(f"norm must be one of batch, group, none, got {norm}")
