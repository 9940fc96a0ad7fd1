"""Local training: epochs of the objective from the received model (McMahan et al. 2017, client side)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import nn

from fedssl.arrays import Arrays
from fedssl.checks import at_least, one_of
from fedssl.memory import Memory
from fedssl.objectives.objective import Objective
from fedssl.training.loop import Examples, LocalRule, OptimizerFactory, Schedule, Stream, fit
from fedssl.training.precision import PRECISIONS, Precision
from fedssl.training.private_loop import PrivateSteps, fit_privately
from fedssl.wire import TrainTask


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training came to, beside the model itself.

    Attributes:
        metrics: The mean of every logged number.
        sent: Named groups of arrays that go to the server with the update.
        kept: Named groups of arrays that the client remembers.
        num_examples: What the client says it trained on, where that is not all of its examples; with 0 it has nothing
            to contribute and is left out of the mean.
    """

    metrics: Mapping[str, float]
    sent: Mapping[str, Arrays] = field(default_factory=dict)
    kept: Mapping[str, Arrays] = field(default_factory=dict)
    num_examples: int | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What a client does in a round, and with what.

    Attributes:
        model: Holds what `LocalTraining.begin` returned; it is trained in place.
        objective: The local loss.
        examples: The client's.
        task: What came.
        partition: The client.
        memory: What it remembers; None on its first participation.
        private: The mechanism that noises each step; None: steps are as usual.
    """

    model: nn.ModuleDict
    objective: Objective
    examples: Examples
    task: TrainTask
    partition: int
    memory: Memory | None = None
    private: PrivateSteps | None = None

    @property
    def stream(self) -> Stream:
        """The names of the client and its round."""
        return Stream(self.task.seed, self.partition, self.task.round)


@dataclass(frozen=True)
class LocalTraining:
    """Train for some epochs with a fresh optimizer; a method changes how a round begins, its steps, or how it ends.

    Attributes:
        optimizer: Makes an optimizer from parameters, e.g. `torch.optim.SGD` with its arguments.
        epochs: Passes over the client's examples in a round.
        batch_size: Examples a step.
        max_grad_norm: Gradients are scaled down to this L2 norm; 0 leaves them.
        schedule: "constant", or "cosine" from the full learning rate to 0 over the rounds of the run.
        precision: What steps are computed in; "bf16", with channels last, for GPUs that have it.

    Raises:
        ValueError: An argument is out of range.
    """

    noised_steps: ClassVar[bool] = True  # for itself alone: a subclass says it again, once its own steps were looked at

    optimizer: OptimizerFactory
    epochs: int = 1
    batch_size: int = 32
    max_grad_norm: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        at_least(0, max_grad_norm=self.max_grad_norm)
        one_of(PRECISIONS, precision=self.precision)

    def begin(self, initial: Arrays, memory: Memory | None, task: TrainTask) -> Arrays:
        """Return the tensors that training begins with: what came, beside what this client remembers.

        Args:
            initial: Every tensor of the untrained model.
            memory: What the client remembers; None on its first participation.
            task: What came.
        """
        return {**initial, **(memory.tensors if memory else {}), **task.arrays}

    def rule(self, model: nn.ModuleDict, objective: Objective, memory: Memory | None, task: TrainTask) -> LocalRule:
        """Return what is added to each step; `model` holds what `begin` returned."""
        return LocalRule()

    def end(
        self, model: nn.ModuleDict, memory: Memory | None, task: TrainTask, metrics: Mapping[str, float]
    ) -> Outcome:
        """Return what is sent and kept beside the model, which is trained now."""
        return Outcome(metrics)

    def train(self, work: Work) -> Outcome:
        """Train the model of `work` in place.

        Raises:
            ValueError: The server sent a setting that this procedure does not know.
        """
        model, objective, task, memory = work.model, work.objective, work.task, work.memory
        if task.settings:
            raise ValueError(f"settings {sorted(task.settings)} are not known to {type(self).__name__}")
        rule = self.rule(model, objective, memory, task)
        objective.begin_round(model, first=memory is None)
        how = (model, objective, work.examples, self.optimizer, self._schedule(task), work.stream)
        metrics = fit(*how, rule) if work.private is None else fit_privately(*how, work.private, rule)
        return self.end(model, memory, task, metrics)

    def _schedule(self, task: TrainTask) -> Schedule:
        progress = ((task.round - 1) / task.num_rounds, task.round / task.num_rounds)
        rate = self.rate_factor(task)
        return Schedule(self.epochs, self.batch_size, rate, self.max_grad_norm, progress, self.precision)

    def rate_factor(self, task: TrainTask) -> float:
        """Return what the optimizer's learning rate is multiplied by in this round."""
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (task.round - 1) / task.num_rounds))
