"""Semi-supervised learning: labels where they are known, and a rule of pseudo-labels elsewhere (Sohn 2020).

"FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence". FlexMatch, FreeMatch and others are
this objective with another `Rule`, and Pseudo-Label (Lee 2013) is it with one view of the unlabelled examples.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least, one_of, within
from fedssl.models.bundle import BATCH_NORMS
from fedssl.models.encoder import Encoder
from fedssl.objectives.multi_crop import Progress
from fedssl.objectives.objective import CLASSIFIER, Batch, Objective, Population, PseudoLabels, Role, Step
from fedssl.objectives.pseudo_labels import RULE, Rule, Seen, Targets, rule_state
from fedssl.objectives.supervised import accuracy, cross_entropy, make_classifier, precise
from fedssl.privacy.contract import PrivacyContract, strongest

PROGRESS = "progress"


class SemiSupervised(Objective):
    """Cross entropy on labelled light views, and on views of unlabelled examples with labels that the model gives.

    A batch may hold labelled examples alone, unlabelled ones alone, or both. With a ramp, the first step of a round
    still has the weight of the client's last one: of a client that joins late, 0.

    Args:
        rule: Takes unlabelled examples for classes.
        weight: Of the cross entropy of unlabelled examples, which is a mean over all of them, not over the accepted.
        ramp: Share of the run over which that weight rises from 0 in a straight line; 0 has all of it at once.
        entropy_weight: Of the negative entropy of the mean prediction on the views whose answer counts, as published
            for few-shot zero-shot learning: it keeps classes in use of which no example is labelled here.
        view: The view of an unlabelled example that learns from its label: "strong", or the "light" one itself.
        answer: The view whose answer is its label: "light", or the "clean" example.
        freeze_norms: Whether unlabelled examples pass the backbone by themselves and leave the running statistics of
            batch normalisation alone; if not, all views of a batch pass it together.
        unlabelled_ratio: Unlabelled examples for each labelled one of a batch; None: as they come.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        rule: Rule,
        weight: float = 1.0,
        ramp: float = 0.0,
        entropy_weight: float = 0.0,
        view: Literal["strong", "light"] = "strong",
        answer: Literal["light", "clean"] = "light",
        freeze_norms: bool = False,
        unlabelled_ratio: int | None = 7,
    ) -> None:
        at_least(0, weight=weight, entropy_weight=entropy_weight)
        at_least(1, unlabelled_ratio=unlabelled_ratio)
        within(0, 1, ramp=ramp)
        one_of(("strong", "light"), view=view)
        one_of(("light", "clean"), answer=answer)
        self.rule = rule
        self.weight = weight
        self.ramp = ramp
        self.entropy_weight = entropy_weight
        self.freeze_norms = freeze_norms
        self.unlabelled_ratio = unlabelled_ratio
        if answer == "clean" and view == "light":
            raise ValueError("answer must be light where the light view learns, got clean")
        clean: tuple[Role, ...] = ("clean",) if answer == "clean" else ()
        self.views = ("light",) if view == "light" else ("light", *clean, "strong")
        private = frozenset(group for group, there in ((RULE, rule.keeps), (PROGRESS, ramp > 0)) if there)
        self.contract = PrivacyContract(
            strongest(rule.coupling, "batch" if entropy_weight > 0 else "per_example"), private
        )

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the classifier, what the rule keeps, and with a ramp the progress."""
        groups = make_classifier(encoder, population)
        kept = self.rule.build(encoder, population)
        if kept is not None:
            groups[RULE] = kept
        if self.ramp > 0:
            groups[PROGRESS] = Progress()
        return groups

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Let the rule prepare."""
        self.rule.begin_round(rule_state(model), first=first)

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Let the rule hear of the step, and remember how far the run is."""
        self.rule.after_step(rule_state(model), progress)
        if self.ramp > 0:
            cast(Progress, model[PROGRESS]).done.fill_(progress)

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of a batch, with "accuracy" and "supervised-loss" of the labelled examples in it.

        "unsupervised-loss" is the cross entropy of the unlabelled ones before its weight.
        """
        known, unknown = batch.where(batch.labelled), batch.where(~batch.labelled)
        features = self._features(model["backbone"], known, unknown)
        logits = [precise(model[CLASSIFIER](rows)) for rows in features]
        supervised = cross_entropy(logits[0], known.labels)
        metrics = accuracy(logits[0], known.labels)
        if len(known.labels):
            metrics["supervised-loss"] = supervised.item()
            self.rule.learn(rule_state(model), _seen(known, known.views[0], features[0], logits[0]), known.labels)
        if not len(unknown.labels):
            return Step(supervised, metrics)
        light, learning = logits[1], logits[-1]
        targets = self.rule.targets(rule_state(model), _seen(unknown, _asked(unknown)[0], features[1], light))
        consistency = weighted_cross_entropy(learning, targets)
        unsupervised = self._weight(model) * consistency + self.rule.regularise(rule_state(model), learning, targets)
        if self.entropy_weight > 0:
            unsupervised = unsupervised + self.entropy_weight * negative_entropy(light)
        metrics["unsupervised-loss"] = consistency.item()
        accepted = targets.weights > 0
        return Step(
            supervised + unsupervised,
            metrics,
            PseudoLabels(unknown.places, targets.labels, accepted),
            (supervised, unsupervised) if len(known.labels) and accepted.any() and self._weight(model) > 0 else None,
        )

    def _features(self, backbone: nn.Module, known: Batch, unknown: Batch) -> tuple[Tensor, ...]:
        """Return the features of the labelled light views, then those of each view of the unlabelled examples."""
        asked = _asked(unknown)
        views = [known.views[0], *asked]
        if self.freeze_norms:
            passed = [backbone(known.views[0])] if len(known.labels) else []
            if len(unknown.labels):
                with _still_statistics(backbone):
                    passed.append(backbone(torch.cat(asked)))
        else:
            passed = [backbone(torch.cat(views))]
        return torch.split(torch.cat(passed), [len(view) for view in views])

    def _weight(self, model: nn.ModuleDict) -> float:
        """Return what the cross entropy of unlabelled examples counts now."""
        if not self.ramp:
            return self.weight
        return self.weight * min(1.0, float(cast(Progress, model[PROGRESS]).done) / self.ramp)


def weighted_cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """Return the sum of `weights * cross entropy`, in nats, over the number of all examples.

    Args:
        logits: `[n, num_classes]`.
        targets: Of the same examples, at least one.
    """
    return (targets.weights * F.cross_entropy(logits, targets.labels, reduction="none")).mean()


def negative_entropy(logits: Tensor) -> Tensor:
    """Return minus the entropy, in nats, of the mean of predictions: -log C when it is uniform, 0 of a single class.

    Args:
        logits: `[n, num_classes]`, n at least 1.
    """
    # in logarithms throughout: a probability of exactly 0 has no gradient that is a number
    mean = F.log_softmax(logits, dim=1).logsumexp(dim=0) - math.log(len(logits))
    return (mean.exp() * mean).sum()


def _asked(unknown: Batch) -> tuple[Tensor, ...]:
    """Return the views of unlabelled examples: the one whose answer counts, then the one that learns."""
    return unknown.views[1:] if len(unknown.views) > 2 else unknown.views


def _seen(batch: Batch, views: Tensor, features: Tensor, logits: Tensor) -> Seen:
    return Seen(views, features.detach(), logits.detach(), batch.places)


@contextmanager
def _still_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisation goes on as it does, and leaves its running statistics as they are."""
    tracking = [layer for layer in module.modules() if isinstance(layer, BATCH_NORMS) and layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
