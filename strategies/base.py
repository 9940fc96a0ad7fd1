"""The federated loop around every server rule: roster, cohorts, quorum, evaluation, tracking."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedssl.arrays import Arrays, num_bytes
from fedssl.errors import RunError
from fedssl.report.records import Failure, RoundRecord
from fedssl.wire import LocalUpdate, TrainTask, read_update, write_task
from strategies.cohort import Roster, last_line, replies_in_order, take_roster

Evaluate = Callable[[int, Arrays], Mapping[str, float]]


class Listener(Protocol):
    """Hears of every client and every round while a run goes on."""

    def waiting(self, online: int, wanted: int) -> None:
        """Only `online` of the `wanted` clients are there yet."""
        ...

    def client_done(self, round_number: int, done: int, total: int) -> None:
        """A client of the round has answered."""
        ...

    def round_done(self, record: RoundRecord, arrays: Arrays) -> None:
        """A round is complete and `arrays` is the global model now."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, with whom, from which seed; a cohort of None is everyone, a quorum of None the whole cohort."""

    rounds: int
    seed: int
    num_clients: int
    cohort: int | None
    quorum: int | None


@dataclass(slots=True)
class _Tally:
    """What a round counts while its updates stream by."""

    bytes_up: int = 0
    clients: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)


class Federated(ABC):
    """A server rule: subclasses say how updates become the next global model, in `merge`.

    Args:
        share: Groups of tensors that are exchanged ("backbone", "head", ...); None exchanges all.
    """

    def __init__(self, share: Collection[str] | None = None) -> None:
        self.share = None if share is None else tuple(share)
        self.buffers: frozenset[str] = frozenset()

    @abstractmethod
    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the next global arrays from the updates, which come one at a time in partition order."""

    def task(self, current: Arrays, round_number: int, plan: Plan) -> TrainTask:
        """Return what every client of the round is asked."""
        return TrainTask(round_number, plan.rounds, plan.seed, current)

    def start(
        self, grid: Grid, initial: Arrays, plan: Plan, evaluate: Evaluate, listener: Listener, buffers: frozenset[str]
    ) -> None:
        """Run every round on `grid`; the listener gets the global arrays of each.

        Raises:
            RunError: A round fell under its quorum, or its updates could not be merged.
        """
        self.buffers = buffers
        roster = take_roster(grid, plan.num_clients, listener.waiting)
        current = dict(initial)
        for round_number in range(1, plan.rounds + 1):
            begun = time.monotonic()
            current, tally, bytes_down = self._round(grid, roster, current, round_number, plan, listener)
            scores = evaluate(round_number, current)
            metrics = {name: float(np.mean(values)) for name, values in tally.metrics.items()}
            listener.round_done(
                RoundRecord(
                    round=round_number, scores=scores, metrics=metrics, epsilon=None, bytes_up=tally.bytes_up,
                    bytes_down=bytes_down, seconds=time.monotonic() - begun, clients=tuple(tally.clients),
                    failures=tuple(tally.failures),
                ),
                current,
            )  # fmt: skip

    def _round(
        self, grid: Grid, roster: Roster, current: Arrays, round_number: int, plan: Plan, listener: Listener
    ) -> tuple[dict[str, Any], _Tally, int]:
        cohort = roster.sample(plan.seed, round_number, plan.cohort)
        content = write_task(self.task(current, round_number, plan))
        messages = [
            Message(content, roster.nodes[partition], MessageType.TRAIN, group_id=str(round_number))
            for partition in cohort
        ]
        tally = _Tally()

        def updates() -> Iterator[LocalUpdate]:
            for done, (partition, reply) in enumerate(zip(cohort, replies_in_order(grid, messages), strict=True), 1):
                update = _receive(reply, partition, current, round_number, tally)
                listener.client_done(round_number, done, len(cohort))
                if update is not None:
                    yield update
            _require_quorum(tally, plan.quorum, len(cohort), round_number)

        merged = self.merge(current, updates(), round_number)
        return merged, tally, num_bytes(current) * len(cohort)


def _receive(reply: Message, partition: int, current: Arrays, round_number: int, tally: _Tally) -> LocalUpdate | None:
    """Return the update when it is sound; otherwise count a failure and return None."""
    if reply.has_error():
        tally.failures.append(Failure(round_number, partition, last_line(reply.error.reason)))
        return None
    update = read_update(reply.content)
    wrong = _defect(update, partition, current)
    if wrong is not None:
        tally.failures.append(Failure(round_number, partition, wrong))
        return None
    tally.bytes_up += num_bytes(update.arrays)
    tally.clients.append(partition)
    for name, value in update.metrics.items():
        tally.metrics.setdefault(name, []).append(value)
    return update


def _defect(update: LocalUpdate, partition: int, current: Arrays) -> str | None:
    """Say what makes an update unfit to be merged, or None."""
    if update.partition != partition:
        return f"the answer came from partition {update.partition}"
    if set(update.arrays) != set(current):
        return f"tensors differ: {sorted(set(update.arrays) ^ set(current))[:3]}"
    for name, array in update.arrays.items():
        if array.shape != current[name].shape or array.dtype != current[name].dtype:
            return f"{name} is {array.dtype}{array.shape}, not {current[name].dtype}{current[name].shape}"
        if not np.all(np.isfinite(array)):
            return f"{name} holds values that are not finite"
    return None if all(np.isfinite(value) for value in update.metrics.values()) else "a metric is not finite"


def _require_quorum(tally: _Tally, quorum: int | None, asked: int, round_number: int) -> None:
    """Raise RunError when fewer clients answered than the round needs."""
    got = len(tally.clients)
    if got < (asked if quorum is None else quorum):
        first = tally.failures[0]
        count = f"{asked - got} of {asked} clients failed"
        wanted = "a smaller quorum goes on without them" if got else "none is left to average"
        raise RunError(f"round {round_number}, partition {first.partition}: {first.reason} ({count}; {wanted})")
