"""How alike two networks see which examples of a batch are near each other.

The loss is that of Twin-sight (Zhang 2024, "Robust Training of Federated Models with Extremely Label Deficiency"), the
alignment that stays comparable while both change is that of Kornblith 2019, "Similarity of Neural Network
Representations Revisited".
"""

import torch
from torch import Tensor

from fedssl.objectives.queue import unit


def cosines(features: Tensor) -> Tensor:
    """Return the cosine of every two rows `[batch, batch]` of `features` `[batch, dim]`, in float32 or better."""
    rows = unit(features)
    return rows @ rows.T


def neighbourhood_loss(first: Tensor, second: Tensor, divisor: int | None = None) -> Tensor:
    """Return the mean squared difference of two networks' cosines; the gradient reaches both.

    It is 0 where both have the same neighbours, and at most 4.

    Args:
        first: `[batch, batch]` cosines of one network's features.
        second: `[batch, batch]` those of the other's for the same examples, of any width.
        divisor: What the sum is divided by instead of `batch ** 2`.
    """
    # before the sum: a divisor of 0 then makes the result NaN, as the published code has it, not infinite
    return ((first - second).square() / (len(first) ** 2 if divisor is None else divisor)).sum()


@torch.no_grad()
def centred_alignment(first: Tensor, second: Tensor) -> float:
    """Return the linear centred kernel alignment of two networks: 1 for the same neighbours, 0 for unrelated ones.

    Other than the loss it does not fall when one network, or both, see all examples as equal: it is 0 then. Of two
    examples it says nothing, since it is always 1.

    Args:
        first: `[batch, batch]` cosines of one network's features.
        second: `[batch, batch]` those of the other's for the same examples.
    """
    one, other = (_centred(gram) for gram in (first, second))
    lengths = one.norm() * other.norm()
    # what rounding leaves of equal rows is no neighbourhood
    least = torch.finfo(first.dtype).eps * len(first)
    return float((one * other).sum() / lengths) if min(one.norm(), other.norm()) > least else 0.0


def _centred(gram: Tensor) -> Tensor:
    return gram - gram.mean(dim=0) - gram.mean(dim=1, keepdim=True) + gram.mean()
