"""Local training: epochs of the objective from the received model (McMahan et al. 2017, client side)."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from fedssl.objectives.objective import Objective
from fedssl.training.loop import Examples, OptimizerFactory, Schedule, Stream, fit
from fedssl.wire import TrainTask


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """Train for some epochs with a fresh optimizer.

    Attributes:
        optimizer: Makes an optimizer from parameters, e.g. `torch.optim.SGD` with its arguments.
        epochs: Passes over the client's examples in a round.
        batch_size: Examples a step.
        max_grad_norm: Gradients are scaled down to this L2 norm; 0 leaves them.
        schedule: "constant", or "cosine" from the full learning rate to 0 over the rounds of the run.
    """

    optimizer: OptimizerFactory
    epochs: int = 1
    batch_size: int = 32
    max_grad_norm: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.max_grad_norm < 0:
            raise ValueError(f"max_grad_norm must be 0 or more, got {self.max_grad_norm}")

    def train(
        self, model: nn.ModuleDict, objective: Objective, examples: Examples, task: TrainTask, partition: int
    ) -> dict[str, float]:
        """Train `model` in place and return the mean of every logged number.

        Raises:
            ValueError: The server sent a setting that this procedure does not know.
        """
        if task.settings:
            raise ValueError(f"settings {sorted(task.settings)} are not known to LocalTraining")
        schedule = Schedule(self.epochs, self.batch_size, self._factor(task), self.max_grad_norm)
        stream = Stream(task.seed, partition, task.round)
        return fit(model, objective, examples, self.optimizer, schedule, stream)

    def _factor(self, task: TrainTask) -> float:
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (task.round - 1) / task.num_rounds))
