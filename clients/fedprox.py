"""FedProx: local training that is held near the model that came (Li et al. 2020)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from clients.exchanged import exchanged
from clients.local_training import LocalTraining
from fedssl.checks import at_least
from fedssl.memory import Memory
from fedssl.objectives.objective import Batch, Objective
from fedssl.training.loop import LocalRule
from fedssl.wire import TrainTask


@dataclass(frozen=True)
class FedProx(LocalTraining):
    """Add `mu / 2` times the squared distance to the received model to each step's loss.

    The distance is over the parameters that are trained and exchanged: private heads move freely, buffers are no
    parameters.

    Attributes:
        mu: Weight of the penalty; 0 is plain local training.

    Raises:
        ValueError: An argument is out of range.
    """

    noised_steps: ClassVar[bool] = True  # the penalty knows the model alone

    mu: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, mu=self.mu)

    def rule(self, model: nn.ModuleDict, objective: Objective, memory: Memory | None, task: TrainTask) -> LocalRule:
        """Return the penalty around the values that came."""
        if self.mu == 0:
            return LocalRule()
        return _Proximal(self.mu, exchanged(model, task))


class _Proximal(LocalRule):
    def __init__(self, mu: float, parameters: dict[str, nn.Parameter]) -> None:
        self._mu = mu
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in parameters.values()]

    def penalty(self, model: nn.ModuleDict, batch: Batch) -> Tensor | None:
        squares = [(parameter - received).square().sum() for parameter, received in self._pairs]
        return self._mu / 2 * torch.stack(squares).sum()
