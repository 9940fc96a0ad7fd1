"""PRG: pseudo-labels rectified by how classes turn into each other during training (Duan 2023).

"Towards Semi-supervised Learning with Non-random Missing Labels".
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, within
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import UNKNOWN, Population
from fedssl.objectives.pseudo_labels import Rule, Seen, Targets, confident, last_of_each

_TINY = 1e-12


class Transitions(nn.Module):
    """The class that each example was last taken for, and the changes of it in the last batches.

    Args:
        num_examples: Places of a client; at least one is kept.
        num_classes: Classes.
        num_batches: Batches that are remembered.
    """

    last: Tensor  # [num_examples] int64, UNKNOWN before an example was seen
    changes: Tensor  # [num_batches, num_classes, num_classes] float32, how often from a class to another
    predicted: Tensor  # [num_batches, num_classes] float32, the mean prediction
    count: Tensor  # batches ever written

    def __init__(self, num_examples: int, num_classes: int, num_batches: int) -> None:
        super().__init__()
        self.register_buffer("last", torch.full((max(1, num_examples),), UNKNOWN))
        self.register_buffer("changes", torch.zeros(num_batches, num_classes, num_classes))
        self.register_buffer("predicted", torch.zeros(num_batches, num_classes))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def write(self, places: Tensor, probabilities: Tensor) -> None:
        """Remember a batch over the oldest one.

        Args:
            places: `[n]` int64, n at least 1.
            probabilities: `[n, num_classes]`.
        """
        slot = self.count % len(self.changes)
        before, now = self.last[places], probabilities.argmax(dim=1)
        last = last_of_each(places, len(self.last))
        changed = (before != UNKNOWN) & (before != now) & last
        start, end = (F.one_hot(labels[changed], probabilities.shape[1]).float() for labels in (before, now))
        self.changes[slot] = start.T @ end
        self.predicted[slot] = probabilities.mean(dim=0).to(self.predicted.dtype)
        self.last[places[last]] = now[last]
        self.count += 1


class Prg(Rule):
    """Likeliest classes, once probabilities were multiplied by the shares of transitions to them.

    An example's row of the matrix of transitions is the class that it is taken for now; published as PRG, or that it
    was taken for when it was last seen: published as PRG-last.

    Args:
        threshold: Least rectified probability of a label that is learned from.
        alpha: Share of staying in a class: `alpha / (num_classes - 1)`, where all changes from a class make 1.
        previous: Whether the row is the last label; an example that has none keeps its probabilities.
        gate: Whether probabilities stay as they are in a row of a class that was never left. As published they do not:
            such a row holds the share of staying alone, and the class of the row becomes certain.
        num_batches: Batches of which changes are counted.

    Raises:
        ValueError: If an argument is out of range.
    """

    coupling = "global_state"

    def __init__(
        self,
        threshold: float = 0.95,
        alpha: float = 1.0,
        previous: bool = False,
        gate: bool = True,
        num_batches: int = 128,
    ) -> None:
        within(0, 1, threshold=threshold)
        above(0, alpha=alpha)
        at_least(1, num_batches=num_batches)
        self.threshold = threshold
        self.alpha = alpha
        self.previous = previous
        self.gate = gate
        self.num_batches = num_batches

    def build(self, encoder: Encoder, population: Population) -> nn.Module:
        """Return what was seen so far."""
        return Transitions(population.num_examples, population.num_classes, self.num_batches)

    @torch.no_grad()
    def targets(self, state: nn.Module | None, unlabelled: Seen) -> Targets:
        """Return confident labels of rectified probabilities; the changes of this batch are among the counted.

        With `previous` they are counted afterwards.
        """
        seen, probabilities = cast(Transitions, state), unlabelled.probabilities
        rows = probabilities.argmax(dim=1)
        if self.previous:
            rows = seen.last[unlabelled.places]
        else:
            seen.write(unlabelled.places, probabilities)
        changes, predicted = seen.changes.sum(dim=0), seen.predicted.sum(dim=0)
        known = rows != UNKNOWN
        if self.gate:
            known &= changes.sum(dim=1)[rows.clamp(min=0)] > 0
        kept = probabilities.clone()
        kept[known] = rectified(probabilities[known], rows[known], changes, predicted, self.alpha)
        if self.previous:
            seen.write(unlabelled.places, probabilities)
        return confident(kept, self.threshold)


def rectified(probabilities: Tensor, rows: Tensor, changes: Tensor, predicted: Tensor, alpha: float) -> Tensor:
    """Return probabilities times the shares of transitions, which are divided by how often a class is predicted.

    Args:
        probabilities: `[n, num_classes]`.
        rows: `[n]` int64, the class that each example comes from.
        changes: `[num_classes, num_classes]` how often one class was left for another; the diagonal is 0.
        predicted: `[num_classes]` predicted shares of the classes, of any scale.
        alpha: Times `1 / (num_classes - 1)`, what stays in a class.

    Returns:
        `[n, num_classes]` rows that sum to one. One of which nothing would be left stays as it is.
    """
    # in double precision: a class that is hardly predicted has a huge factor
    counts = changes.double()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    shares = shares + torch.eye(len(counts), dtype=shares.dtype, device=shares.device) * alpha / (len(counts) - 1)
    scaled = predicted.double() / predicted.double().sum().clamp(min=_TINY)
    products = probabilities.double() * (shares / scaled.clamp(min=_TINY))[rows]
    totals = products.sum(dim=1, keepdim=True)
    return torch.where(totals > 0, products / totals.clamp(min=1e-300), probabilities.double()).to(probabilities.dtype)
