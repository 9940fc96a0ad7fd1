"""SemiFL's local loss: labels that were fixed when the round began, on strong views and on mixtures (Diao et al. 2022).

"SemiFL: Semi-Supervised Federated Learning for Unlabeled Clients with Alternate Training". Mixtures are those of
MixMatch (Berthelot et al. 2019).
"""

import copy
from typing import Self

import torch
from scipy.stats import beta
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.objectives.supervised import accuracy, classify, cross_entropy, make_classifier
from fedssl.privacy.contract import PrivacyContract


class SemiFL(Objective):
    """Cross entropy of strong views, and of mixtures of light views with those of other examples of the client.

    client=semifl gives examples labels: those of a batch that have one are the accepted ones, the others their
    partners in the mixtures, as many of each, whose classes are told by `with_partners`. Before that a batch costs the
    cross entropy of the light views of its labelled examples alone: so a server learns from its labels, and a client
    that knows all of its own.

    Args:
        mix_alpha: Each mixture has a share lambda ~ Beta(mix_alpha, mix_alpha) of the accepted example; the authors'
            code draws one share for a whole batch.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("batch")
    views: tuple[Role, ...] = ("light", "strong")
    num_uniforms = 1
    unlabelled_ratio = 1

    def __init__(self, mix_alpha: float = 0.75) -> None:
        above(0, mix_alpha=mix_alpha)
        self.mix_alpha = mix_alpha
        self._partners: Tensor | None = None

    def with_partners(self, labels: Tensor) -> Self:
        """Return this objective for examples whose classes are `labels`, `[n]` int64 by place."""
        told = copy.copy(self)
        told._partners = labels
        return told

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the classifier."""
        return make_classifier(encoder, population)

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss, with "fix-loss" and "mix-loss" where there are partners, otherwise with "accuracy"."""
        known, others = batch.where(batch.labelled), batch.where(~batch.labelled)
        if self._partners is None or not len(known.labels) or not len(others.labels):
            logits = classify(model, batch.views[0])[batch.labelled]
            return Step(cross_entropy(logits, known.labels), accuracy(logits, known.labels))
        turn = torch.arange(len(known.labels), device=others.places.device) % len(others.labels)
        classes = self._partners.to(others.places.device)[others.places[turn]]
        drawn = beta.ppf(known.uniforms[:, 0].cpu().numpy(), self.mix_alpha, self.mix_alpha)
        share = torch.from_numpy(drawn).to(known.views[0])
        wide = share.view(-1, 1, 1, 1, 1)
        mixtures = wide * known.views[0] + (1 - wide) * others.views[0][turn]
        fix = cross_entropy(classify(model, known.views[1]), known.labels)
        mix = mixed_cross_entropy(classify(model, mixtures), known.labels, classes, share)
        return Step(fix + mix, {"fix-loss": fix.item(), "mix-loss": mix.item()})


def mixed_cross_entropy(logits: Tensor, first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Return the mean of `share * CE(first) + (1 - share) * CE(second)`, in nats and at least single precision.

    Args:
        logits: `[n, num_classes]` of mixtures, n at least 1.
        first: `[n]` int64, the classes that have the share.
        second: `[n]` int64, the classes that have the rest.
        share: `[n]` in [0, 1].
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    one, other = (F.cross_entropy(logits, labels, reduction="none") for labels in (first, second))
    return (share * one + (1 - share) * other).mean()
