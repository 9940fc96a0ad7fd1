"""What a rule of pseudo-labels offers: which class an unlabelled example is taken for, and how much it counts."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Population
from fedssl.privacy.contract import Coupling

RULE = "rule"
"""The group of what a rule keeps on the client between steps and rounds."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a rule sees of examples in a step; nothing in it has a graph.

    Attributes:
        views: `[n, channels, frames, height, width]` their weak views.
        features: `[n, feature_dim]` the backbone's of these views.
        logits: `[n, num_classes]` the classifier's of these features.
        places: `[n]` int64, places among the client's own examples.
    """

    views: Tensor
    features: Tensor
    logits: Tensor
    places: Tensor

    @property
    def probabilities(self) -> Tensor:
        """`[n, num_classes]` rows that sum to one."""
        return self.logits.softmax(dim=1)


@dataclass(frozen=True, slots=True)
class Targets:
    """What unlabelled examples are taken for.

    Attributes:
        labels: `[n]` int64 classes.
        weights: `[n]` what each counts in the loss, from 0, which is not at all, to 1.
    """

    labels: Tensor
    weights: Tensor


class Rule(ABC):
    """A rule of pseudo-labels.

    Attributes:
        coupling: What a pseudo-label depends on beside its own example and the parameters, see `PrivacyContract`.
    """

    coupling: Coupling = "per_example"

    @property
    def keeps(self) -> bool:
        """Whether the rule keeps anything on the client."""
        return type(self).build is not Rule.build

    def build(self, encoder: Encoder, population: Population) -> nn.Module | None:
        """Return what the rule keeps on the client, as the group `RULE`; None where it keeps nothing.

        Buffers are kept, and parameters that need no gradient: no optimizer of the client's model trains them.
        """
        return None

    @abstractmethod
    def targets(self, state: nn.Module | None, unlabelled: Seen) -> Targets:
        """Return what the unlabelled examples of a step are taken for, and learn from them for the next; no graph."""

    def learn(self, state: nn.Module | None, labelled: Seen, labels: Tensor) -> None:  # noqa: B027 - most need none
        """See the labelled examples of a step, before `targets` sees the others; `labels` is `[n]` int64."""

    def regularise(self, state: nn.Module | None, strong_logits: Tensor, targets: Targets) -> Tensor:
        """Return what the rule adds to the loss.

        Args:
            state: What `build` returned.
            strong_logits: `[n, num_classes]` of the views that learn from the targets, with their graph.
            targets: What `targets` returned for the same examples.
        """
        return strong_logits.new_zeros(())

    def begin_round(self, state: nn.Module | None, *, first: bool) -> None:  # noqa: B027
        """Prepare for a round of a client; `first` says that it remembers nothing yet."""

    def after_step(self, state: nn.Module | None, progress: float) -> None:  # noqa: B027
        """Hear that a step is done, and the share of the run that is done with it."""


def rule_state(model: nn.ModuleDict) -> nn.Module | None:
    """Return what the rule of an objective keeps in its model."""
    return model[RULE] if RULE in model else None  # noqa: SIM401 - a ModuleDict has no get


def last_of_each(places: Tensor, size: int) -> Tensor:
    """Return whether a place does not come again later, `[n]` bool: writing to repeated places is undefined on a GPU.

    Args:
        places: `[n]` int64 in [0, size).
        size: Places there are.
    """
    rows = torch.arange(len(places), device=places.device)
    last = places.new_full((size,), -1).scatter_reduce_(0, places, rows, "amax")
    return last[places] == rows


def confident(probabilities: Tensor, thresholds: Tensor | float) -> Targets:
    """Return the likeliest classes, with weight 1 where the probability reaches the threshold and 0 elsewhere.

    Args:
        probabilities: `[n, num_classes]`.
        thresholds: One number, or one for each row.
    """
    highest, labels = probabilities.max(dim=1)
    return Targets(labels, (highest >= thresholds).to(highest.dtype))
