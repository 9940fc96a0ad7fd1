"""Barlow Twins: the cross-correlation of two views becomes the identity (Zbontar 2021).

"Barlow Twins: Self-Supervised Learning via Redundancy Reduction".
"""

import torch
from torch import Tensor, nn

from fedssl.checks import above, at_least
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract


class BarlowTwins(Objective):
    """Redundancy reduction between two views of each example.

    Args:
        hidden: Width of the projector's two hidden layers.
        dim: Width of an embedding.
        off_diagonal_weight: Weight of the correlations between dimensions.
        scale: The loss is multiplied by it.
        norm: What normalises the projector's hidden layers.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("batch")
    views: tuple[Role, ...] = ("full", "full")
    min_batch = 2

    def __init__(
        self,
        hidden: int = 2048,
        dim: int = 2048,
        off_diagonal_weight: float = 0.005,
        scale: float = 0.1,
        norm: HeadNorm = "batch",
    ) -> None:
        at_least(1, hidden=hidden, dim=dim)
        at_least(0, off_diagonal_weight=off_diagonal_weight)
        above(0, scale=scale)
        self.hidden = hidden
        self.dim = dim
        self.off_diagonal_weight = off_diagonal_weight
        self.scale = scale
        self.norm = norm

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector."""
        return {"projector": mlp([encoder.feature_dim, self.hidden, self.hidden, self.dim], self.norm)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of two views."""
        embeddings: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        first, second = embeddings.chunk(2)
        loss = self.scale * barlow_twins(first, second, self.off_diagonal_weight)
        return Step(loss=loss, metrics=collapse(first))


def barlow_twins(first: Tensor, second: Tensor, off_diagonal_weight: float, epsilon: float = 1e-5) -> Tensor:
    """Return how far the correlations between the dimensions of two views are from the identity.

    The sum of `(1 - C_ii)^2`, plus `off_diagonal_weight` times that of `C_ij^2` for i other than j.

    Args:
        first: `[batch, dim]` embeddings of one view, at least 2.
        second: `[batch, dim]` embeddings of the other view of the same examples.
        off_diagonal_weight: Weight of the correlations between dimensions.
        epsilon: Added to the variances.
    """
    correlation = _standardized(first, epsilon).T @ _standardized(second, epsilon) / len(first)
    diagonal = correlation.diagonal()
    off_diagonal = correlation - diagonal.diag()
    return (1 - diagonal).square().sum() + off_diagonal_weight * off_diagonal.square().sum()


def _standardized(rows: Tensor, epsilon: float) -> Tensor:
    """Return columns of mean 0 and variance 1; the biased variance, or equal views would not correlate by 1."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    centred = rows - rows.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + epsilon).sqrt()
