"""Mean teacher: unlabelled examples are answered as the mean of the networks so far does (Tarvainen & Valpola 2017).

"Mean teachers are better role models". With sharpened answers it is the local loss of RSCFed (Liang et al. 2022).
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from fedssl.checks import above, at_least, within
from fedssl.models.encoder import Encoder
from fedssl.objectives.multi_crop import Progress
from fedssl.objectives.objective import Batch, Objective, Population, PseudoLabels, Role, Step
from fedssl.objectives.pseudo_labels import Targets
from fedssl.objectives.supervised import accuracy, classify, cross_entropy, make_classifier, precise
from fedssl.objectives.teacher import TEACHER, Following, make_teacher
from fedssl.privacy.contract import PrivacyContract

STEPS = "steps"
PROGRESS = "progress"


class Steps(nn.Module):
    """How many steps the teacher has followed, in all rounds of its client."""

    taken: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))


class MeanTeacher(Objective):
    """Cross entropy on labelled views, and the squared distance to the teacher's answer elsewhere.

    The teacher is the plain mean of the networks after each step, and an exponential one from where its momentum
    reaches the limit. It stays on the client and goes on from where it was when a new model comes. A batch may hold
    labelled examples alone, unlabelled ones alone, or both. With a ramp, the first step of a
    round still has the weight of the client's last one, see `SemiSupervised`.

    Args:
        weight: Of the distance, which is a mean over the unlabelled examples of a batch.
        ramp: Share of the run over which that weight rises, see `ramped`; 0 has all of it at once.
        temperature: The teacher's probabilities are raised to one over it and normalised: below 1 it sharpens them.
        momentum: Of the teacher: min(1 - 1 / (t + 1), momentum) after t steps.
        unlabelled_ratio: Unlabelled examples for each labelled one of a batch; None: as they come.

    Raises:
        ValueError: If an argument is out of range.
    """

    views: tuple[Role, ...] = ("light", "light")

    def __init__(
        self,
        weight: float = 0.02,
        ramp: float = 0.0,
        temperature: float = 0.5,
        momentum: float = 0.999,
        unlabelled_ratio: int | None = 7,
    ) -> None:
        at_least(0, weight=weight)
        within(0, 1, ramp=ramp, momentum=momentum)
        above(0, temperature=temperature)
        at_least(1, unlabelled_ratio=unlabelled_ratio)
        self.weight = weight
        self.ramp = ramp
        self.temperature = temperature
        self.momentum = momentum
        self.unlabelled_ratio = unlabelled_ratio
        self.contract = PrivacyContract("per_example", frozenset({TEACHER, STEPS} | ({PROGRESS} if ramp else set())))

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the classifier, and what stays on the client: the teacher, its steps, with a ramp the progress."""
        groups = make_classifier(encoder, population)
        teacher = make_teacher(backbone=encoder, **groups)
        progress = {PROGRESS: Progress()} if self.ramp else {}
        return {**groups, TEACHER: teacher, STEPS: Steps(), **progress}

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Make the teacher of a client that takes part for the first time a copy of the model that came."""
        Following().begin_round(model, first=first)

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Take the network into the teacher's mean."""
        taken = cast(Steps, model[STEPS]).taken
        momentum = min(1 - 1 / (int(taken) + 1), self.momentum)
        Following(momentum, momentum).after_step(model, progress)
        taken.add_(1)
        if self.ramp:
            cast(Progress, model[PROGRESS]).done.fill_(progress)

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of a batch, with "accuracy" and "supervised-loss" of the labelled examples in it.

        "unsupervised-loss" is that of the unlabelled ones before its weight.
        """
        known = batch.labelled
        logits = precise(classify(model, torch.cat((batch.views[0][known], batch.views[1][~known]))))
        own, others = logits.tensor_split([int(known.sum())])
        labels = batch.labels[known]
        supervised = self.supervised(model, own, labels)
        metrics = accuracy(own, labels)
        if len(own):
            metrics["supervised-loss"] = supervised.item()
        if not len(others):
            return Step(supervised, metrics)
        with torch.no_grad():
            taught = precise(classify(cast(nn.ModuleDict, model[TEACHER]), batch.views[0][~known]))
        distance, targets = self.unsupervised(model, others, taught)
        metrics["unsupervised-loss"] = distance.item()
        unsupervised = self._weight(model) * distance
        return Step(
            supervised + unsupervised,
            metrics,
            PseudoLabels(batch.places[~known], targets.labels, targets.weights > 0),
            (supervised, unsupervised) if len(own) else None,
        )

    def supervised(self, model: nn.ModuleDict, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of labelled examples, 0 of none.

        Args:
            model: Holds every group.
            logits: `[n, num_classes]`.
            labels: `[n]` int64.
        """
        return cross_entropy(logits, labels)

    def unsupervised(self, model: nn.ModuleDict, student: Tensor, teacher: Tensor) -> tuple[Tensor, Targets]:
        """Return the loss of unlabelled examples before its weight, and what they are taken for.

        Args:
            model: Holds every group.
            student: `[n, num_classes]` logits of one view, n at least 1.
            teacher: `[n, num_classes]` logits of the other view, without a graph.
        """
        answers = sharpened(teacher, self.temperature)
        highest, labels = answers.max(dim=1)
        return squared_distance(student.softmax(dim=1), answers), Targets(labels, torch.ones_like(highest))

    def _weight(self, model: nn.ModuleDict) -> float:
        """Return what the loss of unlabelled examples counts now."""
        if not self.ramp:
            return self.weight
        return self.weight * ramped(float(cast(Progress, model[PROGRESS]).done) / self.ramp)


def sharpened(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax probabilities to the power of `1 / temperature`, normalised.

    Args:
        logits: `[n, num_classes]`.
        temperature: Above 0; 1 leaves the probabilities.
    """
    return (logits / temperature).softmax(dim=1)


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over rows of the squared L2 distance; that of two distributions is in [0, 2].

    Args:
        student: `[n, num_classes]`, n at least 1.
        teacher: Of the same shape.
    """
    return (student - teacher).square().sum(dim=1).mean()


def ramped(done: float) -> float:
    """Return exp(-5 (1 - done)^2), from 0.0067 at 0 to 1 at 1 and after (Laine & Aila 2017)."""
    return math.exp(-5 * (1 - min(done, 1.0)) ** 2)
