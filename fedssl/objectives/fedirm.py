"""FedIRM: unlabelled clients relate classes to each other as labelled ones do (Liu et al. 2021).

"Federated Semi-supervised Medical Image Classification via Inter-client Relation Matching".
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, within
from fedssl.models.encoder import Encoder
from fedssl.objectives.mean_teacher import MeanTeacher, squared_distance
from fedssl.objectives.objective import Population
from fedssl.objectives.pseudo_labels import Targets
from fedssl.objectives.supervised import class_sums
from fedssl.privacy.contract import PrivacyContract

RELATIONS = "relations"
_ROUNDING = 1e-5  # the entropy of a uniform prediction may round to more than the logarithm of the classes


class Relations(nn.Module):
    """The federation's relation matrix, and what this client's own is made of in a round.

    Attributes:
        received: `[num_classes, num_classes]`, row c the softened mean answer to examples of class c.
        known: `[num_classes]` bool, the rows that some client has sent.
        sums: `[num_classes, num_classes]` logits of labelled examples, summed by their class.
        counts: `[num_classes]` how many examples these were.
    """

    received: Tensor
    known: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("received", torch.zeros(num_classes, num_classes))
        self.register_buffer("known", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("sums", torch.zeros(num_classes, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes))


class FedIRM(MeanTeacher):
    """A mean teacher, and the divergence of two relation matrices: the federation's, and that of pseudo-labels.

    It goes with client=fedirm, which puts the federation's matrix in place and sends the client's own, and
    strategy=fedirm, which averages these. A client's own matrix is of the logits of all steps of its round.

    The published filter of pseudo-labels by entropy is over the mean of several passes with dropout; here it is over
    the one pass that is learned from. Published is 2.2 nats with 7 classes, more than log 7: it passes everything, as
    the default does.

    Args:
        weight: Of both terms.
        ramp: Share of the run over which that weight rises, see `ramped`; 0 has all of it at once.
        momentum: Of the teacher, see `MeanTeacher`.
        relation_temperature: Mean logits are divided by it before they become a row of a relation matrix.
        threshold: Least probability of a pseudo-label that enters the matrix.
        max_entropy: Largest entropy of the prediction that it is from, as a share of the logarithm of the classes.
        unlabelled_ratio: Unlabelled examples for each labelled one of a batch; None: as they come.
        reference_compat: Take the teacher's distance between logits instead of probabilities, as a widespread port
            does. It has no bound, and grows with the square of the logits.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        weight: float = 15.0,
        ramp: float = 0.15,
        momentum: float = 0.99,
        relation_temperature: float = 2.0,
        threshold: float = 0.15,
        max_entropy: float = 1.0,
        unlabelled_ratio: int | None = 7,
        reference_compat: bool = False,
    ) -> None:
        super().__init__(weight, ramp, 1.0, momentum, unlabelled_ratio)
        above(0, relation_temperature=relation_temperature, max_entropy=max_entropy)
        within(0, 1, threshold=threshold, max_entropy=max_entropy)
        self.relation_temperature = relation_temperature
        self.threshold = threshold
        self.max_entropy = max_entropy
        self.reference_compat = reference_compat
        self.contract = PrivacyContract("batch", self.contract.private_groups | {RELATIONS})

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the groups of a mean teacher, and the relations, which stay on the client."""
        return {**super().build(encoder, population), RELATIONS: Relations(population.num_classes)}

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Prepare the teacher, and forget the logits of the last round."""
        super().begin_round(model, first=first)
        own = cast(Relations, model[RELATIONS])
        own.sums.zero_()
        own.counts.zero_()

    def supervised(self, model: nn.ModuleDict, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy, and add the logits to those of their classes."""
        own = cast(Relations, model[RELATIONS])
        sums, counts = class_sums(logits.detach(), labels, logits.shape[1])
        own.sums.add_(sums)
        own.counts.add_(counts)
        return super().supervised(model, logits, labels)

    def unsupervised(self, model: nn.ModuleDict, student: Tensor, teacher: Tensor) -> tuple[Tensor, Targets]:
        """Return the distance to the teacher with the divergence of relations, and the pseudo-labels of the latter."""
        kept, labels = self.kept(student.detach())
        relations = cast(Relations, model[RELATIONS])
        sums, counts = class_sums(student[kept], labels[kept], student.shape[1])
        rows = relation_rows(sums, counts, self.relation_temperature)
        divergence = relation_divergence(relations.received, rows, relations.known & (counts > 0))
        answers = (student, teacher) if self.reference_compat else (student.softmax(dim=1), teacher.softmax(dim=1))
        return squared_distance(*answers) + divergence, Targets(labels, kept.to(student.dtype))

    def kept(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return which predictions enter the relation matrix, `[n]` bool, and their classes, `[n]` int64."""
        logs = F.log_softmax(logits, dim=1)
        entropy = -(logs.exp() * logs).sum(dim=1)
        highest, labels = logs.exp().max(dim=1)
        largest = self.max_entropy * math.log(logits.shape[1]) + _ROUNDING
        return (highest >= self.threshold) & (entropy <= largest), labels

    def own(self, model: nn.ModuleDict) -> tuple[Tensor, Tensor]:
        """Return the relation matrix of this client's round `[num_classes, num_classes]` and which rows it has.

        Rows of classes of which there was no labelled example are zeros.
        """
        relations = cast(Relations, model[RELATIONS])
        present = relations.counts > 0
        return relation_rows(relations.sums, relations.counts, self.relation_temperature) * present[:, None], present


def relation_rows(sums: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """Return the softmax of the mean logits of each class divided by `temperature`; uniform for a class of none.

    Args:
        sums: `[num_classes, num_classes]` logits summed by class.
        counts: `[num_classes]`.
        temperature: Above 0.
    """
    return (sums / counts.clamp_min(1)[:, None] / temperature).softmax(dim=1)


def relation_divergence(first: Tensor, second: Tensor, compared: Tensor) -> Tensor:
    """Return half the sum of both Kullback-Leibler divergences in nats, a mean over all classes.

    The published mean is over all rows, though a class that a batch lacks has a uniform row which nothing can move.
    Such rows are 0 here, so that the loss is another constant and the gradient the published one.

    Args:
        first: `[num_classes, num_classes]`, rows are distributions, or anything where they are not compared.
        second: The same.
        compared: `[num_classes]` bool.
    """
    tiny = torch.finfo(second.dtype).tiny  # a row that came may have underflowed to 0
    logs = first.to(second.dtype).clamp_min(tiny).log() - second.clamp_min(tiny).log()
    rows = ((first - second) * logs).sum(dim=1)
    return torch.where(compared, rows, 0).mean() / 2
