"""Supervised learning: the cross entropy of a linear classifier on the backbone."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import within
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import CLASSIFIER, Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract


def make_classifier(encoder: Encoder, population: Population) -> dict[str, nn.Module]:
    """Return a linear map from features to classes as its group.

    Raises:
        ValueError: Nobody knows how many classes there are.
    """
    if population.num_classes < 2:
        raise ValueError(f"num_classes must be at least 2: give data.classes, got {population.num_classes}")
    return {CLASSIFIER: nn.Linear(encoder.feature_dim, population.num_classes)}


def classify(model: nn.ModuleDict, views: Tensor) -> Tensor:
    """Return the logits `[n, num_classes]` of views."""
    return cast(Tensor, model[CLASSIFIER](model["backbone"](views)))


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy in nats, in at least single precision; 0 of no examples."""
    if not len(labels):
        return logits.sum() * 0.0
    return F.cross_entropy(precise(logits), labels, label_smoothing=smoothing)


def precise(logits: Tensor) -> Tensor:
    """Return logits in at least single precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def accuracy(logits: Tensor, labels: Tensor) -> dict[str, float | Tensor]:
    """Return the share of labels that the logits get right as "accuracy"; nothing of no examples."""
    return {"accuracy": (logits.argmax(dim=1) == labels).double().mean()} if len(labels) else {}


def class_sums(rows: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum of the rows of each class `[num_classes, dim]`, and how many they are.

    Args:
        rows: `[n, dim]`, such as features or logits.
        labels: `[n]` int64 in [0, num_classes).
        num_classes: Classes.
    """
    member = F.one_hot(labels, num_classes).to(rows.dtype)
    return member.T @ rows, member.sum(dim=0)


class Supervised(Objective):
    """The cross entropy on one view of the labelled examples.

    Args:
        view: The role of that view, see `Objective.views`.
        smoothing: Share of the probability that is spread evenly over all classes.
        labelled_only: Whether clients leave unlabelled examples out, and those without labels the rounds. A procedure
            that gives labels to examples itself needs false.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example")

    def __init__(self, view: Role = "light", smoothing: float = 0.0, labelled_only: bool = True) -> None:
        within(0, 1, smoothing=smoothing)
        self.views = (view,)
        self.smoothing = smoothing
        self.needs_labels = labelled_only

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the classifier."""
        return make_classifier(encoder, population)

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of the labelled examples of a batch."""
        known = batch.where(batch.labelled)
        logits = classify(model, known.views[0]) if len(known.labels) else classify(model, batch.views[0])[:0]
        return Step(cross_entropy(logits, known.labels, self.smoothing), accuracy(logits, known.labels))
