"""FreeMatch: thresholds that follow the model's own confidence, for all classes and for each (Wang 2023).

"FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning".
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import within
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Population
from fedssl.objectives.pseudo_labels import Rule, Seen, Targets, confident
from fedssl.privacy.contract import Coupling


class Confidence(nn.Module):
    """Running means over unlabelled examples; all begin as those of a model that knows nothing.

    Args:
        num_classes: Classes.
    """

    highest: Tensor
    """Of the highest probability."""
    mean: Tensor
    """`[num_classes]` of the probabilities."""
    histogram: Tensor
    """`[num_classes]` of the shares of the likeliest classes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("highest", torch.empty(()))
        self.register_buffer("mean", torch.empty(num_classes))
        self.register_buffer("histogram", torch.empty(num_classes))
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        for buffer in self.buffers():
            buffer.fill_(1 / len(self.mean))

    def follow(self, probabilities: Tensor, momentum: float) -> None:
        """Move towards the means of `probabilities`, `[n, num_classes]`."""
        highest, labels = probabilities.max(dim=1)
        shares = F.one_hot(labels, len(self.mean)).to(probabilities.dtype).mean(dim=0)
        news = ((self.highest, highest.mean()), (self.mean, probabilities.mean(dim=0)), (self.histogram, shares))
        for buffer, new in news:
            buffer.mul_(momentum).add_(new, alpha=1 - momentum)


class FreeMatch(Rule):
    """Accept what is more confident than the running mean, scaled down for classes that are predicted less.

    Thresholds are of the batches before: that of a client's first step is 1 / C for every class.

    Args:
        momentum: Of the running means.
        fairness_weight: Of `fairness`. The published loss adds it, as a number above 0 does; see there what it does.
        clamp: Lowest and highest threshold of a class, published for SVHN as 0.9 and 0.95; None leaves them.
        reset: Whether running means begin anew in every round, as a published federated variant has it. Thresholds
            then stay near 1 / C, where all pseudo-labels are accepted, unless a round has many more steps than
            1 / (1 - momentum).

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        momentum: float = 0.999,
        fairness_weight: float = 0.001,
        clamp: Sequence[float] | None = None,
        reset: bool = False,
    ) -> None:
        within(0, 1, momentum=momentum)
        within(-1, 1, fairness_weight=fairness_weight)
        if clamp is not None and not (len(clamp) == 2 and 0 <= clamp[0] <= clamp[1] <= 1):
            raise ValueError(f"clamp must be two numbers that rise within 0 and 1, got {list(clamp)}")
        self.momentum = momentum
        self.fairness_weight = fairness_weight
        self.clamp = clamp
        self.reset = reset
        self.coupling: Coupling = "batch" if fairness_weight else "global_state"

    def build(self, encoder: Encoder, population: Population) -> nn.Module:
        """Return the running means."""
        return Confidence(population.num_classes)

    def begin_round(self, state: nn.Module | None, *, first: bool) -> None:
        """Forget the running means if they are not kept."""
        if self.reset:
            cast(Confidence, state).clear()

    def targets(self, state: nn.Module | None, unlabelled: Seen) -> Targets:
        """Return the likeliest classes, and move the running means."""
        confidence, probabilities = cast(Confidence, state), unlabelled.probabilities
        targets = confident(probabilities, self.thresholds(confidence)[probabilities.argmax(dim=1)])
        confidence.follow(probabilities, self.momentum)
        return targets

    def thresholds(self, confidence: Confidence) -> Tensor:
        """Return the threshold of each class, `[num_classes]`."""
        thresholds = confidence.highest * (confidence.mean / confidence.mean.max())
        return thresholds if self.clamp is None else thresholds.clamp(self.clamp[0], self.clamp[1])

    def regularise(self, state: nn.Module | None, strong_logits: Tensor, targets: Targets) -> Tensor:
        """Return the weighted fairness of the accepted examples."""
        if not self.fairness_weight:
            return strong_logits.new_zeros(())
        confidence = cast(Confidence, state)
        expected = normalised_by(confidence.mean, confidence.histogram).to(strong_logits.dtype)
        return self.fairness_weight * fairness(strong_logits[targets.weights > 0], expected)


def normalised_by(mean: Tensor, histogram: Tensor) -> Tensor:
    """Return `mean / histogram` as a distribution `[num_classes]`; 0 where the histogram is."""
    scaled = torch.where(histogram > 0, mean / histogram, 0)
    return scaled / scaled.sum()


def fairness(logits: Tensor, expected: Tensor) -> Tensor:
    """Return the mean log probability, in nats, of the distribution of a batch under the expected one; 0 of no rows.

    Both are mean probabilities divided by how often each class is the likeliest, and normalised. When both are uniform
    the value is -log C. Its gradient is that of minus a cross entropy: what is minimised takes the batch away from
    what is expected. Classes that no row is taken for are left out; they have no gradient.

    Args:
        logits: `[n, num_classes]` of the accepted examples' learning views.
        expected: `[num_classes]`, see `normalised_by`.
    """
    counts = F.one_hot(logits.argmax(dim=1), len(expected)).sum(dim=0)
    present = counts > 0
    # in logarithms throughout: a mean probability of exactly 0 has no gradient that is a number
    means = F.log_softmax(logits, dim=1).logsumexp(dim=0)[present]
    batch = F.log_softmax(means - counts[present].to(logits.dtype).log(), dim=0)
    return (expected[present] * batch).sum()
