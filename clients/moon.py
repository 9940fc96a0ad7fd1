"""MOON: features near those of the global model, away from those of this client's last one (Li et al. 2021)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clients.local_training import LocalTraining, Outcome
from fedssl.checks import above, at_least
from fedssl.memory import Memory
from fedssl.models import bundle
from fedssl.objectives.objective import Batch, Objective
from fedssl.objectives.teacher import make_teacher
from fedssl.training.loop import LocalRule
from fedssl.wire import TrainTask

PREVIOUS = "previous"
_PROJECTOR = "projector"


def model_contrast(features: Tensor, received: Tensor, previous: Tensor, temperature: float) -> Tensor:
    """Return the mean cross entropy, in nats, of telling the received model's features from the previous model's.

    Args:
        features: `[batch, dim]` of the model that is trained.
        received: `[batch, dim]` of the global model, for the same examples.
        previous: `[batch, dim]` of this client's model at the end of its last participation.
        temperature: Cosines are divided by it.
    """
    features, received, previous = (
        tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (features, received, previous)
    )
    cosines = [F.cosine_similarity(features, other) for other in (received, previous)]
    logits = torch.stack(cosines, dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


@dataclass(frozen=True)
class Moon(LocalTraining):
    """Add `mu` times the contrast of models to each step's loss, from a client's second participation on.

    Features are the projector's where the model has one, else the backbone's, of the first view. The two other models
    are frozen and use the statistics of their batch normalisation, as in the authors' code; the trained one sees the
    view once more. A client's memory grows by a backbone and a projector.

    Attributes:
        mu: Weight of the term.
        temperature: Temperature of the cosines.

    Raises:
        ValueError: An argument is out of range.
    """

    mu: float = 1.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, mu=self.mu)
        above(0, temperature=self.temperature)

    def rule(self, model: nn.ModuleDict, objective: Objective, memory: Memory | None, task: TrainTask) -> LocalRule:
        """Return the term, or nothing on the first participation: there is no previous model yet."""
        if memory is None:
            return LocalRule()
        received, previous = _frozen(model), _frozen(model)
        bundle.load(previous, memory.extras[PREVIOUS])
        return _Contrast(self.mu, self.temperature, received, previous)

    def end(
        self, model: nn.ModuleDict, memory: Memory | None, task: TrainTask, metrics: Mapping[str, float]
    ) -> Outcome:
        """Keep the trained model for the next participation."""
        return Outcome(metrics, kept={PREVIOUS: bundle.arrays(model, _compared(model))})


class _Contrast(LocalRule):
    def __init__(self, mu: float, temperature: float, received: nn.ModuleDict, previous: nn.ModuleDict) -> None:
        self._mu, self._temperature = mu, temperature
        self._received, self._previous = received, previous

    def penalty(self, model: nn.ModuleDict, batch: Batch) -> Tensor | None:
        views = batch.views[0]
        with torch.no_grad():
            received, previous = _features(self._received, views), _features(self._previous, views)
        return self._mu * model_contrast(_features(model, views), received, previous, self._temperature)


def _compared(model: nn.ModuleDict) -> Collection[str]:
    return [group for group in (bundle.BACKBONE, _PROJECTOR) if group in model]


def _frozen(model: nn.ModuleDict) -> nn.ModuleDict:
    """Return a copy of the compared groups that nothing trains or updates."""
    frozen = make_teacher(**{group: model[group] for group in _compared(model)})
    frozen.eval()
    return frozen


def _features(model: nn.ModuleDict, views: Tensor) -> Tensor:
    features = model[bundle.BACKBONE](views)
    return cast(Tensor, model[_PROJECTOR](features) if _PROJECTOR in model else features)
