"""WAD, client side: class prototypes that all clients make together, and labels that are kept (Du 2023)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from clients.fedprox import FedProx
from clients.local_training import Outcome, Work
from clients.pseudo_labelling import known_labels
from fedssl.arrays import Arrays
from fedssl.checks import at_least, within
from fedssl.models import bundle
from fedssl.objectives.objective import UNKNOWN
from fedssl.objectives.pseudo_labels import RULE, Targets
from fedssl.objectives.semi_supervised import SemiSupervised
from fedssl.objectives.supervised import Supervised, class_sums, classify
from fedssl.objectives.wad import Prototypes, Wad
from fedssl.training.loop import Examples, Stream, make_batch

CLASSES = "classes"
PROMOTED = "promoted"
_LOOK = Supervised("clean", labelled_only=False)  # for its view: nothing is random between rounds


@dataclass(frozen=True)
class WadTraining(FedProx):
    """Local training, or FedProx, with the prototypes of all clients; at times, unlabelled examples become labelled.

    What leaves a client beside the model are, for each class, the sum of the teacher's unit features of its labelled
    examples and their number: of a class with one example, the feature of that example.

    The run is divided into as many equal parts as there are promotions. After the last round of part s, or else the
    next in which a client takes part, `share * (1 - s / promotions)^2` of its unlabelled examples keep the teacher's
    label for good: those for which the model agrees most. An example of weight 0 never does.

    Attributes:
        mu: Weight of FedProx's penalty; 0 adds none.
        share: Of the unlabelled examples that are left; 0 promotes none.
        promotions: Parts of the run; the last promotes none.
    """

    mu: float = 0.0
    share: float = 0.1
    promotions: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, share=self.share)
        at_least(1, promotions=self.promotions)

    def train(self, work: Work) -> Outcome:
        """Train the model in place, then promote where it is time; logs the share of all examples that were "promoted".

        Raises:
            ValueError: The objective is another, or the server sends no prototypes.
        """
        model, objective, task, examples = work.model, work.objective, work.task, work.examples
        if not (isinstance(objective, SemiSupervised) and isinstance(objective.rule, Wad)):
            raise ValueError(f"client=wad needs objective=wad, got {type(objective).__name__}")
        if CLASSES not in task.extras:
            raise ValueError("the server sends no means of classes; choose strategy=class_means")
        bundle.load(model, {f"{RULE}.shared_{name}": array for name, array in task.extras[CLASSES].items()})
        given = known_labels(examples)
        nothing: Arrays = {"labels": np.full_like(given, UNKNOWN), "part": np.array(0)}
        kept = work.memory.extras[PROMOTED] if work.memory else nothing
        labels = np.where(given == UNKNOWN, kept["labels"], given)
        examples = replace(examples, labels=labels)
        outcome = super().train(replace(work, examples=examples))

        stream, part = work.stream, self.promotions * task.round // task.num_rounds
        if part > kept["part"]:
            labels = self._promote(model, examples, labels, stream, part)
            examples = replace(examples, labels=labels)
        new = np.where(given == UNKNOWN, labels, UNKNOWN)
        return Outcome(
            {**outcome.metrics, "promoted": float((new != UNKNOWN).mean())},
            {CLASSES: self._sums(model, examples, stream)},
            {PROMOTED: {"labels": new, "part": np.array(part)}},
        )

    def _promote(
        self, model: nn.ModuleDict, examples: Examples, labels: NDArray[np.int64], stream: Stream, part: int
    ) -> NDArray[np.int64]:
        """Return the labels of the examples, some more of them."""
        places = np.flatnonzero(labels == UNKNOWN)
        number = num_promoted(len(places), self.share, part, self.promotions)
        if not number:
            return labels
        model.eval()
        features, logits = [], []
        with torch.no_grad():
            for views, _ in self._clean(model, examples, places, stream):
                features.append(_prototypes(model).features(views))
                logits.append(classify(model, views))
        targets = _prototypes(model).judge(torch.cat(features))
        chosen = surest(torch.cat(logits), targets, number).cpu().numpy()
        more = labels.copy()
        more[places[chosen]] = targets.labels.cpu().numpy()[chosen]
        return more

    def _sums(self, model: nn.ModuleDict, examples: Examples, stream: Stream) -> Arrays:
        """Return the sums of the teacher's features of the labelled examples by class, and their counts."""
        prototypes = _prototypes(model)
        sums, counts = torch.zeros_like(prototypes.means), torch.zeros_like(prototypes.counts)
        for views, labels in self._clean(model, examples, np.flatnonzero(examples.labelled), stream):
            more, number = class_sums(prototypes.features(views), labels, len(counts))
            sums, counts = sums + more, counts + number
        return {"sums": sums.cpu().numpy(), "counts": counts.cpu().numpy()}

    def _clean(
        self, model: nn.ModuleDict, examples: Examples, places: NDArray[np.int64], stream: Stream
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield clean views and labels of some examples, a batch at a time."""
        device = next(model.parameters()).device
        for start in range(0, len(places), self.batch_size):
            batch = make_batch(_LOOK, examples, places[start : start + self.batch_size], stream, self.epochs, device)
            yield batch.views[0], batch.labels


def num_promoted(num_unlabelled: int, share: float, part: int, promotions: int) -> int:
    """Return how many of the unlabelled examples are promoted: `share` at the beginning, none after the last part.

    Args:
        num_unlabelled: Examples that are left.
        share: From 0 to 1.
        part: Parts of the run that are done.
        promotions: All of them.
    """
    return int(share * num_unlabelled * (promotions - part) ** 2 / promotions**2)


def surest(logits: Tensor, targets: Targets, number: int) -> Tensor:
    """Return which examples have the least cross entropy to their targets, `[at most number]` int64.

    Args:
        logits: `[n, num_classes]` of the model.
        targets: Of the same examples; one of weight 0 is never among them.
        number: At most n.
    """
    losses = F.cross_entropy(logits.float(), targets.labels, reduction="none")
    order = losses.masked_fill(targets.weights <= 0, torch.inf).argsort(stable=True)[:number]
    return order[targets.weights[order] > 0]


def _prototypes(model: nn.ModuleDict) -> Prototypes:
    return cast(Prototypes, model[RULE])
