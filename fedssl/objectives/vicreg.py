"""VICReg: equal views of spread-out, uncorrelated dimensions (Bardes 2022).

"VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning".
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least, one_of
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract

VarianceReduction = Literal["mean", "sum"]
_EPSILON = 1e-4  # added to variances


class Terms(NamedTuple):
    """The three terms of VICReg before they are weighted."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


class Vicreg(Objective):
    """Invariance, variance and covariance of two views of each example.

    Args:
        hidden: Width of the projector's two hidden layers.
        dim: Width of an embedding.
        invariance_weight: Weight of the distance between two views.
        variance_weight: Weight of what dimensions lack to a standard deviation of 1.
        covariance_weight: Weight of the covariances between dimensions.
        variance_reduction: Whether the variance term is the "mean" of both views, as in the authors' code, or their
            "sum", as in their text.
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
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        variance_reduction: VarianceReduction = "mean",
        norm: HeadNorm = "batch",
    ) -> None:
        at_least(1, hidden=hidden, dim=dim)
        at_least(0, invariance_weight=invariance_weight, variance_weight=variance_weight)
        at_least(0, covariance_weight=covariance_weight)
        one_of(("mean", "sum"), variance_reduction=variance_reduction)
        self.weights = (invariance_weight, variance_weight, covariance_weight)
        self.hidden = hidden
        self.dim = dim
        self.variance_reduction = variance_reduction
        self.norm = norm

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector."""
        return {"projector": mlp([encoder.feature_dim, self.hidden, self.hidden, self.dim], self.norm)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the weighted sum of the terms of two views, and each of them unweighted."""
        embeddings: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        first, second = embeddings.chunk(2)
        terms = vicreg(first, second, self.variance_reduction)
        loss = torch.stack([weight * term for weight, term in zip(self.weights, terms, strict=True)]).sum()
        logs = {name: term.item() for name, term in terms._asdict().items()}
        return Step(loss=loss, metrics=logs | collapse(first))


def vicreg(first: Tensor, second: Tensor, variance_reduction: VarianceReduction = "mean") -> Terms:
    """Return the three terms of two views.

    Args:
        first: `[batch, dim]` embeddings of one view, at least 2.
        second: `[batch, dim]` embeddings of the other view of the same examples.
        variance_reduction: Whether the variance term is the mean or the sum of that of each view.

    Returns:
        The mean squared difference; the mean of what the standard deviation of a dimension lacks to 1; and the sum over
        both views of `covariance_penalty`.
    """
    views = torch.stack((first, second))
    views = views.to(torch.promote_types(views.dtype, torch.float32))
    lacks = F.relu(1 - (views.var(dim=1) + _EPSILON).sqrt()).mean(dim=1)
    return Terms(
        invariance=F.mse_loss(views[0], views[1]),
        variance=lacks.mean() if variance_reduction == "mean" else lacks.sum(),
        covariance=covariance_penalty(views[0]) + covariance_penalty(views[1]),
    )


def covariance_penalty(rows: Tensor) -> Tensor:
    """Return the sum of the squared covariances between different dimensions, over their number.

    Args:
        rows: `[batch, dim]`, at least 2, in float32 or better.
    """
    centred = rows - rows.mean(dim=0)
    covariance = centred.T @ centred / (len(rows) - 1)
    return (covariance - covariance.diagonal().diag()).square().sum() / rows.shape[1]
