"""What label deficiency does to training: pseudo-labels against the truth, and gradients against each other."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.objectives.objective import PseudoLabels

COVERAGE, ACCURACY = "pseudo-label coverage", "pseudo-label accuracy"


class PseudoLabelTally:
    """Counts what the unlabelled examples of a client were taken for.

    Args:
        truth: `[n]` the class of each of the client's examples; None where nobody knows.
    """

    def __init__(self, truth: NDArray[np.int64] | None) -> None:
        self._truth = truth
        self._seen: list[NDArray[np.int64]] = []

    def add(self, pseudo_labels: PseudoLabels | None) -> None:
        """Count the pseudo-labels of a step."""
        if pseudo_labels is not None and len(pseudo_labels.places):
            columns = (pseudo_labels.places, pseudo_labels.labels, pseudo_labels.accepted.long())
            self._seen.append(torch.stack(columns).cpu().numpy())

    def shares(self) -> dict[str, float]:
        """Return the coverage, and where the truth is known the accuracy, also by class.

        "pseudo-label coverage" is the accepted share of what was seen, "pseudo-label accuracy" the share of accepted
        labels that are right; "pseudo-label coverage.3" is the accepted share of the examples that are of class 3, and
        "pseudo-label accuracy.3" the share that is right of the labels "3". What would be a share of nothing is left
        out, and so is everything where nothing was seen.
        """
        if not self._seen:
            return {}
        places, labels, accepted = np.concatenate(self._seen, axis=1)
        took = accepted == 1
        shares = {COVERAGE: float(took.mean())}
        if self._truth is None:
            return shares
        truth = self._truth[places]
        right = labels == truth
        if took.any():
            shares[ACCURACY] = float(right[took].mean())
        for label in np.unique(truth):
            shares[f"{COVERAGE}.{label}"] = float(took[truth == label].mean())
        for label in np.unique(labels[took]):
            shares[f"{ACCURACY}.{label}"] = float(right[took & (labels == label)].mean())
        return shares


def gradient_angle(model: nn.ModuleDict, terms: tuple[Tensor, Tensor]) -> list[float]:
    """Return the angle in degrees between the backbone's gradients of two terms; nothing where one of them is zero.

    Above 90 the two contradict each other: a step along one undoes the other.

    Args:
        model: Holds the group "backbone".
        terms: Two parts of a loss, with their graphs, which are kept.
    """
    parameters = [parameter for parameter in model["backbone"].parameters() if parameter.requires_grad]
    if not parameters or not all(term.requires_grad for term in terms):
        return []
    first, second = (torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True) for term in terms)

    def inner(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
        return sum((a.double() * b.double()).sum().item() for a, b in zip(one, other, strict=True))

    return angle(inner(first, second), inner(first, first), inner(second, second))


def angle(product: float, first: float, second: float) -> list[float]:
    """Return the angle in degrees from an inner product and two squared lengths; nothing where a length is zero."""
    if first <= 0 or second <= 0:
        return []
    return [math.degrees(math.acos(max(-1.0, min(1.0, product / math.sqrt(first * second)))))]
