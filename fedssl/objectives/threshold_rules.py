"""Pseudo-labels that are confident enough: one threshold for all classes, or one a class (Sohn 2020; Zhang 2021).

"FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", and "FlexMatch: Boosting
Semi-Supervised Learning with Curriculum Pseudo Labeling".
"""

from typing import cast

import torch
from torch import Tensor, nn

from fedssl.checks import within
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Population
from fedssl.objectives.pseudo_labels import Rule, Seen, Targets, confident, last_of_each
from fedssl.privacy.contract import Coupling

_UNSEEN, _UNUSED = -2, -1


class FixedThreshold(Rule):
    """Accept the likeliest class where its probability reaches a threshold: FixMatch, and Pseudo-Label.

    Args:
        threshold: Least probability.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, threshold: float = 0.95) -> None:
        within(0, 1, threshold=threshold)
        self.threshold = threshold

    def targets(self, state: nn.Module | None, unlabelled: Seen) -> Targets:
        """Return the likeliest classes."""
        return confident(unlabelled.probabilities, self.threshold)


class LastConfident(nn.Module):
    """The class each example was last taken for with confidence.

    Args:
        size: Examples of the largest client.
    """

    labels: Tensor
    """`[size]` int64; negative where an example was never confident, or never seen."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("labels", torch.full((max(1, size),), _UNSEEN))

    def write(self, places: Tensor, labels: Tensor, sure: Tensor) -> None:
        """Remember the labels of the examples that are sure, and that the others were seen.

        Args:
            places: `[n]` int64.
            labels: `[n]` int64 classes.
            sure: `[n]` bool.
        """
        before = self.labels[places].clamp(min=_UNUSED)
        last = last_of_each(places, len(self.labels))
        self.labels[places[last]] = torch.where(sure, labels, before)[last]

    def counts(self, num_classes: int) -> tuple[Tensor, Tensor]:
        """Return the examples of each class, `[num_classes]`, and those that were seen but never confident."""
        learned = torch.bincount(self.labels[self.labels >= 0], minlength=num_classes)
        return learned, (self.labels == _UNUSED).sum()


class FlexMatch(Rule):
    """Lower the threshold of a class that few examples are confidently taken for, since it is learned slowly.

    Counts are of the batches before. What each example was last confident of stays on the client from round to round.
    How many unlabelled examples a client has is what it has seen of them, so that a small client's thresholds warm up
    like a large one's; before all of them came once, the shares are those of the ones that came.

    Args:
        threshold: Least probability of the class that most examples are taken for.
        warmup: Whether examples that were never confident hold all thresholds down while they outnumber every class.

    Raises:
        ValueError: If an argument is out of range.
    """

    coupling: Coupling = "global_state"

    def __init__(self, threshold: float = 0.95, warmup: bool = True) -> None:
        within(0, 1, threshold=threshold)
        self.threshold = threshold
        self.warmup = warmup

    def build(self, encoder: Encoder, population: Population) -> nn.Module:
        """Return an empty memory of the last confident classes."""
        return LastConfident(population.num_examples)

    def targets(self, state: nn.Module | None, unlabelled: Seen) -> Targets:
        """Return the likeliest classes, and remember those that reach the threshold that is not lowered."""
        memory, probabilities = cast(LastConfident, state), unlabelled.probabilities
        thresholds = self.thresholds(*memory.counts(probabilities.shape[1])).to(probabilities)
        targets = confident(probabilities, thresholds[probabilities.argmax(dim=1)])
        sure = confident(probabilities, self.threshold).weights > 0
        memory.write(unlabelled.places, targets.labels, sure)
        return targets

    def thresholds(self, counts: Tensor, unused: Tensor) -> Tensor:
        """Return the threshold of each class, `[num_classes]` float64.

        Args:
            counts: `[num_classes]` examples that were last confidently of each class.
            unused: How many never were of any.
        """
        most = torch.maximum(counts.max(), unused) if self.warmup else counts.max()
        shares = counts.double() / most.clamp(min=1)
        return self.threshold * shares / (2 - shares)
