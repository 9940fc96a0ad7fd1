"""Twin-sight: a supervised and an unsupervised network keep the same neighbours (Zhang 2024).

"Robust Training of Federated Models with Extremely Label Deficiency".
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.checks import at_least, one_of
from fedssl.models.bundle import BACKBONE
from fedssl.models.encoder import Encoder
from fedssl.objectives.fusion import agreement, entropy_fusion
from fedssl.objectives.neighbourhood import centred_alignment, cosines, neighbourhood_loss
from fedssl.objectives.objective import CLASSIFIER, UNKNOWN, Batch, Draw, Objective, Population, PseudoLabels, Step
from fedssl.objectives.pseudo_labels import RULE, Rule, Seen, Targets, rule_state
from fedssl.objectives.second_network import listening, redrawn
from fedssl.objectives.semi_supervised import weighted_cross_entropy
from fedssl.objectives.supervised import accuracy, cross_entropy, make_classifier
from fedssl.objectives.teacher import TEACHER
from fedssl.privacy.contract import Coupling, PrivacyContract, strongest

TWIN, TWIN_PRIVATE = "twin", "twin_private"
_PROJECTOR, _OPINION = "projector", "twin_classifier"
Defect = Literal[
    "xor", "swapped_views", "no_pseudo_labels", "frozen_teacher", "projector_alignment", "second_weak_view"
]


class TwinSight(Objective):
    """A classifier learns from labels and pseudo-labels, its twin from a host without labels; their cosines agree.

    A batch may hold labelled examples alone, unlabelled ones alone, or both, which decides the weight of
    pseudo-labels. The twin is exchanged like the rest and serves nothing but training: what is evaluated and exported
    is the backbone with its classifier. The twin sees no labels, and begins as another draw of the same
    initialisation, also where the backbone begins with an encoder of an earlier run.

    `reference_compat` brings back what the published code does other than the paper says: "xor" divides the sum of
    squared differences by `batch ^ 2`, the exclusive or, instead of the square: 62 times too strong for 64 examples,
    NaN for 2; "swapped_views" takes the strong view of clients without labels for the pseudo-label, which the light
    one learns; "no_pseudo_labels" gives such clients none, as its headline setting did; "frozen_teacher" leaves the
    host's teacher what it was initialised as; "projector_alignment" compares the twin's projector, as with SimSiam;
    "second_weak_view" draws a second light view for the strong one, as on SVHN and Fashion-MNIST.

    Args:
        host: What the twin learns by: an objective of two full views.
        rule: Takes unlabelled examples for classes.
        instance_weight: Weight of the host's loss.
        neighbour_weight: Weight of the mean squared difference of cosines.
        pseudo_weight: Weight of the cross entropy of pseudo-labels in a batch without labelled examples.
        mixed_pseudo_weight: The same in a batch that has both.
        view: The host's second view, which also learns from pseudo-labels; the first is light.
        unlabelled_ratio: Unlabelled examples for each labelled one in the batches of a client that has both; None: as
            they come.
        fusion: What the twin has to say about pseudo-labels, by a linear classifier of its own that does not change
            it: nothing, a veto ("agree"), or a part of the answer, weighted by "entropy" (SUMMIT, Simons 2023).
        single_network: Whether the host trains the supervised backbone itself and there is nothing to align, to
            measure the conflict that the twin takes away.
        reference_compat: Names of defects of the published code.

    Raises:
        ValueError: If an argument is out of range, or one leaves another without effect.
    """

    def __init__(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
        self,
        host: Objective,
        rule: Rule,
        instance_weight: float = 0.5,
        neighbour_weight: float = 1.0,
        pseudo_weight: float = 0.5,
        mixed_pseudo_weight: float = 5.0,
        view: Literal["strong", "full"] = "strong",
        unlabelled_ratio: int | None = 1,
        fusion: Literal["none", "agree", "entropy"] = "none",
        single_network: bool = False,
        reference_compat: Sequence[Defect] = (),
    ) -> None:
        at_least(0, instance_weight=instance_weight, neighbour_weight=neighbour_weight)
        at_least(0, pseudo_weight=pseudo_weight, mixed_pseudo_weight=mixed_pseudo_weight)
        at_least(1, unlabelled_ratio=unlabelled_ratio)
        one_of(("strong", "full"), view=view)
        one_of(("none", "agree", "entropy"), fusion=fusion)
        for defect in reference_compat:
            one_of(get_args(Defect), reference_compat=defect)
        self.host = host
        self.rule = rule
        self.instance_weight = instance_weight
        self.neighbour_weight = neighbour_weight
        self.pseudo_weight = 0.0 if "no_pseudo_labels" in reference_compat else pseudo_weight
        self.mixed_pseudo_weight = mixed_pseudo_weight
        self.unlabelled_ratio = unlabelled_ratio
        self.fusion = fusion
        self.single_network = single_network
        self.defects = frozenset(reference_compat)
        self.views = ("light", "light" if "second_weak_view" in reference_compat else view)
        self.min_batch = host.min_batch if single_network else max(2, host.min_batch)
        self.min_frames = host.min_frames
        self.num_uniforms = host.num_uniforms
        self._refuse(view)
        own: Coupling = "per_example" if single_network else "batch"
        coupling = strongest(own, host.contract.coupling, rule.coupling)
        groups = ((TWIN_PRIVATE, bool(host.contract.private_groups)), (RULE, rule.keeps))
        self.contract = PrivacyContract(coupling, frozenset(group for group, there in groups if there))

    def _refuse(self, view: str) -> None:
        """Raise ValueError for a host that does not fit, and where one argument leaves another without effect."""
        host = type(self.host).__name__
        if self.host.views != ("full", "full"):
            raise ValueError(f"host must be an objective of two full views, got {host}")
        if "frozen_teacher" in self.defects and TEACHER not in self.host.contract.private_groups:
            raise ValueError(f"host must have a teacher to freeze, got {host}")
        for defect in sorted(self.defects & {"xor", "projector_alignment"}):
            if self.single_network:
                raise ValueError(f"reference_compat must be about one network where there is one, got {defect}")
        if self.fusion != "none" and (self.single_network or "swapped_views" in self.defects):
            raise ValueError(f"fusion must be none with a single network or swapped views, got {self.fusion}")
        if "second_weak_view" in self.defects and view != "strong":
            raise ValueError(f"view must be strong where a light one is drawn in its place, got {view}")

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose the host's frames."""
        return self.host.draw(num_frames, uniforms)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the classifier, the twin with the host's groups, what the host keeps, and what the rule keeps.

        Raises:
            ValueError: The host has no projector where that is to be aligned.
        """
        groups = make_classifier(encoder, population)
        twin = encoder if self.single_network else redrawn(encoder)
        hosted = self.host.build(twin, population)
        if "projector_alignment" in self.defects and _PROJECTOR not in hosted:
            raise ValueError(f"host must be an objective with a projector, got {type(self.host).__name__}")
        private = self.host.contract.private_groups
        shared: dict[str, nn.Module] = {} if self.single_network else {BACKBONE: twin}
        shared |= {name: group for name, group in hosted.items() if name not in private}
        if self.fusion != "none":
            shared[_OPINION] = make_classifier(twin, population)[CLASSIFIER]
        groups[TWIN] = nn.ModuleDict(shared)
        if private:
            groups[TWIN_PRIVATE] = nn.ModuleDict({name: hosted[name] for name in sorted(private)})
        kept = self.rule.build(encoder, population)
        return groups if kept is None else groups | {RULE: kept}

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Prepare what the host and the rule keep on the client."""
        if "frozen_teacher" not in self.defects:
            self.host.begin_round(self._hosted(model), first=first)
        self.rule.begin_round(rule_state(model), first=first)

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Move what follows the host's trained tensors, and let the rule hear of the step."""
        if "frozen_teacher" not in self.defects:
            self.host.after_step(self._hosted(model), progress)
        self.rule.after_step(rule_state(model), progress)

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of a batch.

        Logged are "accuracy" and "supervised-loss" of labelled examples, "pseudo-loss", the cross entropy of
        pseudo-labels before its weight, "instance-loss" and the host's own metrics as "instance-...", "alignment", the
        mean squared difference of cosines, and "twin-cka", their centred alignment. The two terms are what the
        supervised backbone learns from labels and pseudo-labels, and from its twin or, alone, from the host.
        """
        known = batch.labelled
        labels = batch.labels[known]
        weight = self.mixed_pseudo_weight if len(labels) else self.pseudo_weight
        taught = ~known if weight > 0 else torch.zeros_like(known)
        instance, twin_features, compared = self._host_step(model, batch)
        weak, strong = _answers(model, batch, taught)

        labelled = weak.where(known)
        own = cross_entropy(labelled.logits, labels)
        metrics = {f"instance-{name}": value for name, value in instance.metrics.items()}
        metrics |= {"instance-loss": instance.loss.item(), **accuracy(labelled.logits, labels)}
        if len(labels):
            metrics["supervised-loss"] = own.item()
            self.rule.learn(rule_state(model), labelled.seen(), labels)

        opinion = cast(nn.ModuleDict, model[TWIN])[_OPINION](twin_features.detach()) if self.fusion != "none" else None
        pseudo_labels = None
        if taught.any():
            swapped = "swapped_views" in self.defects and not len(labels)
            asked, learning = (strong, weak) if swapped else (weak.where(taught), strong)
            targets = self._targets(model, asked.seen(), None if opinion is None else opinion[taught].detach())
            consistency = weighted_cross_entropy(learning.logits, targets)
            own = own + weight * consistency + self.rule.regularise(rule_state(model), learning.logits, targets)
            metrics["pseudo-loss"] = consistency.item()
            pseudo_labels = PseudoLabels(batch.places[taught], targets.labels, targets.weights > 0)

        other = self.instance_weight * instance.loss
        loss = own + other
        if not self.single_network:
            grams = cosines(compared), cosines(weak.features)
            alignment = neighbourhood_loss(*grams, len(known) ^ 2 if "xor" in self.defects else None)
            other = self.neighbour_weight * alignment
            loss = loss + other
            metrics |= {"alignment": alignment.item(), "twin-cka": centred_alignment(*grams)}
        if opinion is not None:
            loss = loss + cross_entropy(opinion[known], labels)
        learned = len(labels) or (pseudo_labels is not None and pseudo_labels.accepted.any())
        return Step(loss, metrics, pseudo_labels, (own, other) if learned else None)

    def _host_step(self, model: nn.ModuleDict, batch: Batch) -> tuple[Step, Tensor, Tensor]:
        """Return the host's step, the features of the weak views, and what of the twin is compared, `[batch, dim]`."""
        hosted = self._hosted(model)
        blind = dataclasses.replace(batch, labels=torch.full_like(batch.labels, UNKNOWN))
        projected = "projector_alignment" in self.defects
        with listening(hosted[BACKBONE]) as encoded, listening(hosted[_PROJECTOR if projected else BACKBONE]) as last:
            step = self.host.step(hosted, blind)
        features = encoded.first(batch.views[0])
        return step, features, last.first(features) if projected else features

    def _targets(self, model: nn.ModuleDict, asked: Seen, opinion: Tensor | None) -> Targets:
        """Return the rule's targets, with the opinion of the twin, `[n, num_classes]` logits, where it is asked."""
        if opinion is not None and self.fusion == "entropy":
            asked = dataclasses.replace(asked, logits=entropy_fusion(asked.logits, opinion))
        targets = self.rule.targets(rule_state(model), asked)
        if opinion is not None and self.fusion == "agree":
            return dataclasses.replace(targets, weights=targets.weights * agreement(asked.logits, opinion))
        return targets

    def _hosted(self, model: nn.ModuleDict) -> nn.ModuleDict:
        """Return the groups that the host knows, under the names that it knows."""
        groups = {BACKBONE: model[BACKBONE]} if self.single_network else {}
        for name in (TWIN, TWIN_PRIVATE):
            groups |= dict(cast(nn.ModuleDict, model[name]).items()) if name in model else {}
        return nn.ModuleDict(groups)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the supervised network makes of views, see `Seen`; features and logits have their graphs."""

    views: Tensor
    features: Tensor
    logits: Tensor
    places: Tensor

    def where(self, chosen: Tensor) -> "_Answer":
        return _Answer(self.views[chosen], self.features[chosen], self.logits[chosen], self.places[chosen])

    def seen(self) -> Seen:
        return Seen(self.views, self.features.detach(), self.logits.detach(), self.places)


def _answers(model: nn.ModuleDict, batch: Batch, taught: Tensor) -> tuple[_Answer, _Answer]:
    """Return the answers to all weak views, and to the strong views of the mask `taught`, from one pass."""
    weak, strong = batch.views[0], batch.views[1][taught]
    features: Tensor = model[BACKBONE](torch.cat((weak, strong)))
    logits: Tensor = model[CLASSIFIER](features)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    (first, second), (one, other) = (rows.split([len(weak), len(strong)]) for rows in (features, logits))
    return _Answer(weak, first, one, batch.places), _Answer(strong, second, other, batch.places[taught])
