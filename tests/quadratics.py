"""A federation whose losses are functions of a point, so that every step of it can be computed by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.local_training import LocalTraining, Work
from fedssl.arrays import Arrays
from fedssl.data.arrays import ArrayDataset
from fedssl.memory import Memory
from fedssl.models import bundle
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract
from fedssl.training.loop import Examples, OptimizerFactory
from fedssl.wire import LocalUpdate, TrainTask
from strategies.base import Federated, Plan

NAME = "backbone.point"


class Plain:
    """Changes nothing."""

    num_uniforms = 0

    def __call__(self, clips: Tensor, uniforms: NDArray[np.float64], role: Role, ordinal: int) -> Tensor:
        return clips / 255


class Point(nn.Module):
    """A vector that is trained, and the count of nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@dataclass
class Loss(Objective):
    """A function of the point, the same for every batch."""

    function: Callable[[Tensor], Tensor]

    contract = PrivacyContract("per_example")

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        return {}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        return Step(self.function(model["backbone"].point), {})


def quadratic(curvature: float, centre: Sequence[float]) -> Loss:
    """Return curvature / 2 times the squared distance to `centre`."""
    place = torch.tensor(centre, dtype=torch.float64)
    return Loss(lambda point: curvature / 2 * (point - place).square().sum())


def sgd(lr: float, **settings: float | bool) -> OptimizerFactory:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **settings)


def examples(number: int) -> Examples:
    blank = np.zeros((number, 1, 1, 1, 1), np.uint8)
    dataset = ArrayDataset(np.zeros(number, np.int64), ("none",), ("",) * number, blank)
    return Examples(dataset, np.arange(number), Plain())


def answer(
    procedure: LocalTraining,
    objective: Objective,
    model: nn.ModuleDict,
    task: TrainTask,
    memory: Memory | None = None,
    number: int = 4,
) -> tuple[LocalUpdate, Memory]:
    """Do what a client does with a task; `model` is its shell."""
    bundle.load(model, procedure.begin(bundle.arrays(model, None), memory, task))
    outcome = procedure.train(Work(model, objective, examples(number), task, 0, memory))
    trained = bundle.arrays(model, None)
    shared = {name: trained.pop(name) for name in task.arrays}
    update = LocalUpdate(0, task.round, shared, number, outcome.metrics, outcome.sent)
    return update, Memory(trained, outcome.kept)


@dataclass
class Federation:
    """Clients with losses of their own around a server rule; every round is recorded."""

    strategy: Federated
    procedure: LocalTraining
    losses: Sequence[Loss]
    start: Sequence[float]
    rounds: int
    points: list[NDArray[np.float64]] = field(default_factory=list)
    memories: dict[int, Memory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = Plan(self.rounds, 0, len(self.losses), None, 1)
        self.strategy.buffers = frozenset({"backbone.count"})
        current: Mapping[str, NDArray[np.float64]] = {
            NAME: np.array(self.start, np.float64),
            "backbone.count": np.array(0),
        }
        for number in range(1, self.rounds + 1):
            current = self.strategy.merge(current, self._updates(self.strategy.task(current, number, plan)), number)
            self.points.append(current[NAME])

    def cohort(self, number: int) -> Sequence[int]:
        return range(len(self.losses))

    def _updates(self, task: TrainTask):  # noqa: ANN202
        for client in self.cohort(task.round):
            model = nn.ModuleDict({"backbone": Point(len(self.start))})
            update, memory = answer(self.procedure, self.losses[client], model, task, self.memories.get(client))
            self.memories[client] = memory
            yield update


def task_of(arrays: Arrays, number: int = 1, rounds: int = 1, **extras: Arrays) -> TrainTask:
    return TrainTask(number, rounds, 0, arrays, {}, extras)
