"""FedMatch: one part of the parameters learns from labels, another from agreement with other clients (Jeong 2021).

"Federated Semi-Supervised Learning with Inter-Client Consistency & Disjoint Learning".
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedssl.arrays import Arrays
from fedssl.checks import at_least, within
from fedssl.models.bundle import BACKBONE
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import CLASSIFIER, Batch, Objective, Population, PseudoLabels, Role, Step
from fedssl.objectives.pseudo_labels import Targets, confident
from fedssl.objectives.semi_supervised import weighted_cross_entropy
from fedssl.objectives.supervised import accuracy, classify, cross_entropy, make_classifier
from fedssl.privacy.contract import PrivacyContract

SIGMA, PSI = "sigma", "psi"


class FedMatch(Objective):
    """Cross entropy that moves sigma, and consistency that moves psi; the network's parameters are their sum.

    An unlabelled example counts where the network is sure of it. Its strong view is to be what most of the network and
    its helpers, the models of other clients, say of its light view; where they disagree evenly the network has its
    way. Its light view is to get the probabilities that the helpers give. client=fedmatch brings helpers with it;
    without any the network votes alone.

    The backbone and the classifier hold the sum, as evaluation and other clients need it; sigma is what psi leaves of
    it and so need not be sent. Both have their gradients in the same step. Where a batch has no labelled examples
    sigma stays, where it has no unlabelled ones psi does.

    Args:
        supervised_weight: Of the cross entropy of labelled examples.
        agreement_weight: Of the cross entropy of strong views with the votes.
        consistency_weight: Of the mean divergence from the helpers' probabilities.
        l2_weight: Of the squared distance between sigma and psi.
        l1_weight: Of the sum of the sizes of psi.
        threshold: Least probability with which the network is sure; means are over all unlabelled examples of a batch.
        psi_share: Psi begins as this share of sigma.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example", frozenset({SIGMA}))
    views: tuple[Role, ...] = ("light", "strong")

    def __init__(
        self,
        supervised_weight: float = 10.0,
        agreement_weight: float = 0.01,
        consistency_weight: float = 0.01,
        l2_weight: float = 10.0,
        l1_weight: float = 1e-4,
        threshold: float = 0.75,
        psi_share: float = 0.2,
        unlabelled_ratio: int | None = 7,
    ) -> None:
        at_least(0, supervised_weight=supervised_weight, agreement_weight=agreement_weight)
        at_least(0, consistency_weight=consistency_weight, l2_weight=l2_weight, l1_weight=l1_weight)
        at_least(0, psi_share=psi_share)
        within(0, 1, threshold=threshold)
        at_least(1, unlabelled_ratio=unlabelled_ratio)
        self.supervised_weight = supervised_weight
        self.agreement_weight = agreement_weight
        self.consistency_weight = consistency_weight
        self.l2_weight = l2_weight
        self.l1_weight = l1_weight
        self.threshold = threshold
        self.psi_share = psi_share
        self.unlabelled_ratio = unlabelled_ratio
        self._helpers: tuple[nn.ModuleDict, ...] = ()

    def with_helpers(self, helpers: Sequence[nn.ModuleDict]) -> Self:
        """Return this objective with models, from `helper`, that vote beside the trained one."""
        helped = copy.copy(self)
        helped._helpers = tuple(helpers)
        return helped

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the classifier, and the two parts of each parameter; only the parts are trained."""
        groups = make_classifier(encoder, population)
        whole = [*encoder.parameters(), *groups[CLASSIFIER].parameters()]
        share = self.psi_share / (1 + self.psi_share)
        psi = nn.ParameterList([share * parameter.detach() for parameter in whole])
        sigma = nn.ParameterList([(1 - share) * parameter.detach() for parameter in whole])
        for parameter in whole:
            parameter.requires_grad = False
        return {**groups, PSI: psi, SIGMA: sigma}

    @torch.no_grad()
    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Take for sigma what psi leaves of the model that came."""
        for whole, sigma, psi in _parts(model):
            sigma.copy_(whole - psi)

    @torch.no_grad()
    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Take the sum of the two parts for the network's parameters."""
        for whole, sigma, psi in _parts(model):
            whole.copy_(sigma + psi)

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of a batch, with "accuracy" and "supervised-loss" of the labelled examples in it.

        "unsupervised-loss" is the weighted loss of the unlabelled ones without the two penalties.
        """
        known, unknown = batch.where(batch.labelled), batch.where(~batch.labelled)
        terms, metrics, taken = [], {}, None
        if len(known.labels):
            logits = _logits(model, known.views[0], trained=SIGMA)
            supervised = cross_entropy(logits, known.labels)
            terms.append(self.supervised_weight * supervised)
            metrics = accuracy(logits, known.labels) | {"supervised-loss": supervised.item()}
        if len(unknown.labels):
            unsupervised, targets = self._unsupervised(model, unknown)
            terms += [unsupervised, self._penalty(model)]
            metrics["unsupervised-loss"] = unsupervised.item()
            taken = PseudoLabels(unknown.places, targets.labels, targets.weights > 0)
        return Step(torch.stack(terms).sum(), metrics, taken)

    def _unsupervised(self, model: nn.ModuleDict, unknown: Batch) -> tuple[Tensor, Targets]:
        light = _logits(model, unknown.views[0], trained=PSI)
        with torch.no_grad():
            said = [classify(helper, unknown.views[0]).to(light) for helper in self._helpers]
        own = confident(light.detach().softmax(dim=1), self.threshold)
        targets = Targets(vote(light.detach(), said), own.weights)
        agreement = weighted_cross_entropy(_logits(model, unknown.views[1], trained=PSI), targets)
        return self.agreement_weight * agreement + self.consistency_weight * consistency(light, said, own), targets

    def _penalty(self, model: nn.ModuleDict) -> Tensor:
        distance = torch.stack([(sigma.detach() - psi).square().sum() for _, sigma, psi in _parts(model)]).sum()
        size = torch.stack([psi.abs().sum() for _, _, psi in _parts(model)]).sum()
        return self.l2_weight * distance + self.l1_weight * size


def vote(own: Tensor, helpers: Sequence[Tensor]) -> Tensor:
    """Return the class `[n]` that most models find likeliest; `own` has its way among those with the most votes.

    Args:
        own: `[n, num_classes]` logits.
        helpers: The same of each helper.
    """
    votes = 1.5 * _one_hot(own)
    for logits in helpers:
        votes += _one_hot(logits)
    return votes.argmax(dim=1)


def consistency(own: Tensor, helpers: Sequence[Tensor], sure: Targets) -> Tensor:
    """Return the mean over all examples of `weight * mean over helpers of KL(helper || own)`, in nats; 0 of no helper.

    Args:
        own: `[n, num_classes]` logits, n at least 1.
        helpers: The same of each helper.
        sure: The weights of the examples.
    """
    if not helpers:
        return own.new_zeros(())
    answer = F.log_softmax(own, dim=1)
    each = [F.kl_div(answer, F.log_softmax(other, dim=1), log_target=True, reduction="none") for other in helpers]
    return (sure.weights * torch.stack(each).sum(dim=2).mean(dim=0)).mean()


def helper(model: nn.ModuleDict, psi: Arrays) -> nn.ModuleDict:
    """Return the network with the sigma of `model` and the psi of another client, which nothing trains or updates.

    Args:
        model: As it came.
        psi: The other's, by tensor name.
    """
    made = nn.ModuleDict({group: copy.deepcopy(model[group]) for group in (BACKBONE, CLASSIFIER)}).eval()
    with torch.no_grad():
        for place, (whole, own) in enumerate(zip(_whole(made), model[PSI].parameters(), strict=True)):
            whole.add_(torch.tensor(psi[f"{PSI}.{place}"], device=own.device) - own)
    return made


def _one_hot(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)


def _whole(model: nn.ModuleDict) -> Iterator[nn.Parameter]:
    return chain(model[BACKBONE].parameters(), model[CLASSIFIER].parameters())


def _parts(model: nn.ModuleDict) -> Iterator[tuple[nn.Parameter, nn.Parameter, nn.Parameter]]:
    """Yield each parameter of the network with its sigma and its psi."""
    return zip(_whole(model), model[SIGMA].parameters(), model[PSI].parameters(), strict=True)


def _logits(model: nn.ModuleDict, views: Tensor, *, trained: str) -> Tensor:
    """Return the logits, in at least single precision, of the sum of both parts, of which one has a gradient."""
    sums = iter([sigma + psi.detach() if trained == SIGMA else sigma.detach() + psi for _, sigma, psi in _parts(model)])
    passed = views
    for group in (BACKBONE, CLASSIFIER):
        parameters = {name: next(sums) for name, _ in model[group].named_parameters()}
        passed = functional_call(model[group], parameters, (passed,))
    return passed.to(torch.promote_types(passed.dtype, torch.float32))
