"""A small federation of a function, for tests of the engine: 4 clients with 1 to 4 examples."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedssl.arrays import Arrays, sha256
from fedssl.config import Engine
from fedssl.report.records import Failure, RoundRecord
from fedssl.simulation.engine import open_grid
from fedssl.wire import LocalUpdate, TrainTask, read_task, write_update
from strategies.averaging import Averaging
from strategies.base import Plan

INITIAL = {"backbone.w": np.arange(6, dtype=np.float32).reshape(2, 3), "backbone.n": np.array(4, np.int64)}
Work = Callable[[TrainTask, int], LocalUpdate]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests' folder


@dataclass
class Client:
    """Makes a client app around a function."""

    work: Work

    def __call__(self) -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            update = self.work(read_task(message.content), int(context.node_config["partition-id"]))
            return Message(write_update(update), reply_to=message)

        return app


@dataclass
class Heard:
    """Everything that a listener is told."""

    records: list[RoundRecord] = field(default_factory=list)
    failures: list[tuple[Failure, str]] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return sha256(self.arrays)

    def before_training(self, scores: Mapping[str, float]) -> None: ...

    def waiting(self, online: int, wanted: int) -> None: ...

    def client_done(self, round_number: int, done: int, total: int) -> None: ...

    def client_failed(self, failure: Failure, details: str) -> None:
        self.failures.append((failure, details))

    def round_done(self, record: RoundRecord, arrays: Arrays) -> bool:
        self.records.append(record)
        self.arrays = arrays
        return True


def federate(work: Work, engine: Engine, rounds: int, quorum: int = 1, address: str | None = None) -> Heard:
    """Run FedAvg and return what was heard."""
    heard = Heard()
    plan = Plan(rounds, 0, 4, None, quorum, num_examples=lambda partition: partition + 1)
    with open_grid(dataclasses.replace(engine, address=address), Client(work), 4) as grid:
        Averaging().start(grid, INITIAL, plan, heard, frozenset({"backbone.n"}))
    return heard
