"""ER: a bound on the information that two views share, of an entropy and a reconstruction (Rodríguez-Gálvez 2023).

"The Role of Entropy and Reconstruction in Multi-View Self-Supervised Learning".
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, one_of
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract


class Bound(NamedTuple):
    """The two parts of a bound in nats; `entropy - reconstruction` bounds the shared information from below.

    Attributes:
        entropy: Of an embedding, estimated from the batch.
        reconstruction: What an embedding still costs when that of the other view is known.
    """

    entropy: Tensor
    reconstruction: Tensor


class EntropyReconstruction(Objective):
    """Spread-out embeddings that the other view predicts, without negatives or a teacher.

    Args:
        kind: "continuous" embeddings are directions, with a von Mises-Fisher kernel; "discrete" ones are distributions
            over `dim` categories.
        concentration: That of the kernel; the logits of categories are the normalised embedding times this.
        hidden: Width of the projector's hidden layer.
        dim: Width of an embedding.
        norm: What normalises the projector's hidden layer.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("batch")
    views: tuple[Role, ...] = ("full", "full")
    min_batch = 2

    def __init__(
        self,
        kind: Literal["continuous", "discrete"] = "continuous",
        concentration: float = 10.0,
        hidden: int = 2048,
        dim: int = 256,
        norm: HeadNorm = "batch",
    ) -> None:
        one_of(("continuous", "discrete"), kind=kind)
        above(0, concentration=concentration)
        at_least(1, hidden=hidden)
        at_least(2, dim=dim)
        self.kind = kind
        self.concentration = concentration
        self.hidden = hidden
        self.dim = dim
        self.norm = norm

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector."""
        return {"projector": mlp([encoder.feature_dim, self.hidden, self.dim], self.norm)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the negative bound of two views, and its parts."""
        embeddings: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        first, second = embeddings.chunk(2)
        bound = (continuous if self.kind == "continuous" else discrete)(first, second, self.concentration)
        logs = {name: part.item() for name, part in bound._asdict().items()}
        return Step(loss=bound.reconstruction - bound.entropy, metrics=logs | collapse(first))


def continuous(first: Tensor, second: Tensor, concentration: float) -> Bound:
    """Return the bound of directions: both views are equal in it, each is reconstructed from the other.

    Args:
        first: `[batch, dim]` embeddings of one view, of any length.
        second: `[batch, dim]` embeddings of the other view of the same examples.
        concentration: Of the von Mises-Fisher density around an embedding, for the entropy (Joe 1989) as for the
            reconstruction.
    """
    directions = _normalized(torch.stack((first, second)))
    log_scale = log_vmf_scale(first.shape[1], concentration)
    densities = (concentration * directions @ directions.mT).logsumexp(dim=2) - math.log(len(first))
    agreement = (directions[0] * directions[1]).sum(dim=1)
    return Bound(
        entropy=-densities.mean() - log_scale,
        reconstruction=-concentration * agreement.mean() - log_scale,
    )


def discrete(first: Tensor, second: Tensor, concentration: float) -> Bound:
    """Return the bound of distributions over categories, the entropy and the cross entropy of both views.

    Args:
        first: `[batch, categories]` embeddings of one view, of any length.
        second: `[batch, categories]` embeddings of the other view of the same examples.
        concentration: The normalised embeddings times this are the logits.
    """
    logs = F.log_softmax(concentration * _normalized(torch.stack((first, second))), dim=2)
    shares = logs.exp()
    mean = shares.mean(dim=1)
    return Bound(
        entropy=-torch.xlogy(mean, mean).sum(dim=1).mean(),
        reconstruction=-(shares * logs.flip(0)).sum(dim=2).mean(),
    )


def log_vmf_scale(dim: int, concentration: float) -> float:
    """Return the logarithm of the scale of a von Mises-Fisher density on the unit sphere of `dim` dimensions.

    The density at a direction x is this scale times `exp(concentration * mean @ x)`.

    Args:
        dim: At least 2.
        concentration: Above 0.
    """
    order = dim / 2 - 1
    # the power series of the Bessel function, whose terms are positive and fall fast from the concentration on
    place = torch.arange(int(concentration) + 64, dtype=torch.float64)
    terms = 2 * place * math.log(concentration / 2) - torch.lgamma(place + 1) - torch.lgamma(place + order + 1)
    return order * math.log(2) - dim / 2 * math.log(2 * math.pi) - float(terms.logsumexp(dim=0))


def _normalized(rows: Tensor) -> Tensor:
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
