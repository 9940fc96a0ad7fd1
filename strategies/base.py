"""The federated loop around every server rule: roster, cohorts, quorum, evaluation, tracking."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedssl.arrays import Arrays, num_bytes
from fedssl.errors import RunError
from fedssl.privacy.account import Account
from fedssl.report.records import Failure, RoundRecord
from fedssl.simulation.availability import Attendance, Availability, attend
from fedssl.simulation.grid import SimulationGrid
from fedssl.wire import LocalUpdate, TrainTask, with_extras, write_task
from strategies.cohort import Roster, take_roster
from strategies.conflict import Conflict
from strategies.personal import client_scores
from strategies.replies import last_line, read_sound, replies_in_order


class Listener(Protocol):
    """Hears of every client and every round while a run goes on."""

    def before_training(self, scores: Mapping[str, float]) -> None:
        """What the clients say of the model that the run begins with."""
        ...

    def waiting(self, online: int, wanted: int) -> None:
        """Only `online` of the `wanted` clients are there yet."""
        ...

    def client_done(self, round_number: int, done: int, total: int) -> None:
        """A client of the round has answered."""
        ...

    def client_failed(self, failure: Failure, details: str) -> None:
        """A client of the round gave no sound update; `details` is all that is known, such as a traceback."""
        ...

    def round_done(self, record: RoundRecord, arrays: Arrays) -> bool:
        """A round is merged and `arrays` is the global model now; return whether to go on."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, with whom, from which seed.

    Attributes:
        rounds: The last round.
        seed: The run's seed.
        num_clients: Clients of the federation.
        cohort: Clients in a round; None is everyone.
        quorum: Fewest updates a round needs; None asks for one from every client that is available.
        num_examples: Returns the examples of a partition where the server made the partition; None asks the clients.
        num_labelled: Returns how many of these have a label; None asks the clients.
        needs_labels: Whether clients without labels have nothing to train on, and are not chosen.
        labelled_rounds: First rounds in which only clients with labels are chosen, whatever they train on.
        teach: Trains the merged model on what the server itself holds, after each round; None where it holds nothing.
        clients_score: Says in which rounds every client scores the model, 0 being before the first; None: never.
        availability: Who can be chosen and who leaves, on a virtual clock; None: everyone answers.
        account: Charges each round before it is trained, and noises where the server does; None protects nothing.
        history: Rounds that are done already, by an earlier process of the same run.
        state: What `Federated.state` returned after the last of them.
    """

    rounds: int
    seed: int
    num_clients: int
    cohort: int | None
    quorum: int | None
    num_examples: Callable[[int], int] | None = None
    num_labelled: Callable[[int], int] | None = None
    needs_labels: bool = False
    labelled_rounds: int = 0
    teach: Callable[[Arrays, int], Arrays] | None = None
    clients_score: Callable[[int], bool] | None = None
    availability: Availability | None = None
    account: Account | None = None
    history: Sequence[RoundRecord] = ()
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Tally:
    """What a round counts while its updates stream by."""

    bytes_down: int
    conflict: Conflict
    bytes_up: int = 0
    clients: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def add(self, update: LocalUpdate) -> None:
        self.bytes_up += _num_bytes(update)
        self.clients.append(update.partition)
        for name, value in update.metrics.items():
            self.metrics.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """Return the mean of each number over the clients that reported it, and the angle between their updates."""
        return {name: float(np.mean(values)) for name, values in self.metrics.items()} | self.conflict.metric()


class Federated(ABC):
    """A server rule: subclasses say how updates become the next global model, in `merge`.

    One that keeps anything else between rounds returns it from `state` and takes it back in `restore`, so that a run
    continues to the same bits.

    Args:
        share: Groups of tensors that are exchanged ("backbone", "head", ...); None exchanges all.
        metrics: Numbers that every client must report because `merge` reads them.
    """

    def __init__(self, share: Collection[str] | None = None, metrics: Collection[str] = ()) -> None:
        self.share = None if share is None else tuple(share)
        self.metrics = tuple(metrics)
        self.buffers: frozenset[str] = frozenset()

    @abstractmethod
    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the next global arrays from the updates, which come one at a time, in the order of the cohort."""

    def task(self, current: Arrays, round_number: int, plan: Plan) -> TrainTask:
        """Return what every client of the round is asked."""
        return TrainTask(round_number, plan.rounds, plan.seed, current)

    def personal(self, partition: int) -> Mapping[str, Arrays]:
        """Return named groups of arrays that one client of the round gets beside what all get."""
        return {}

    def extras(self, current: Arrays) -> Mapping[str, Arrays]:
        """Return named groups of arrays that every update must bring beside the model; their values mean nothing."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """Return what the rule keeps between rounds: numbers, texts, PyTorch tensors, and lists and dicts of these."""
        return {}

    def restore(self, state: Mapping[str, Any], current: Arrays) -> None:
        """Take back what `state` returned; `current` is the global model of that moment.

        Raises:
            ValueError: There is state, and this rule keeps none.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps nothing between rounds, the bundle has {sorted(state)}")

    def start(self, grid: Grid, initial: Arrays, plan: Plan, listener: Listener, buffers: frozenset[str]) -> None:
        """Run every round on `grid` that is not in the plan's history; the listener gets the global arrays of each.

        Raises:
            RunError: A round fell under its quorum, or its updates could not be merged.
        """
        self.buffers = buffers
        self.restore(plan.state, initial)
        if isinstance(grid, SimulationGrid) and plan.num_examples is not None:
            num_labelled = plan.num_labelled or (lambda _: 0)
            roster = Roster(plan.num_clients, grid.node_of, plan.num_examples, num_labelled)
        else:
            roster = take_roster(grid, plan.num_clients, listener.waiting)
            if (plan.needs_labels or plan.labelled_rounds) and not roster.knows_labels():
                raise RunError("round 0: no client knows a label, and the objective or labelled_rounds needs one")
        current = dict(initial)
        asks = plan.clients_score or (lambda _: False)
        if not plan.history and asks(0):
            listener.before_training(client_scores(grid, roster, current, 0))
        now = sum(record.virtual_seconds or 0.0 for record in plan.history)
        for round_number in range(len(plan.history) + 1, plan.rounds + 1):
            begun, account = time.monotonic(), plan.account
            used_up = account.used_up(round_number) if account else frozenset()
            if account and used_up and not _enough_left(roster, plan, account, round_number, used_up):
                return
            attendance = _attendance(roster, plan, round_number, now, used_up)
            now += attendance.seconds
            if account and not account.charge(round_number, [*attendance.present, *attendance.absent]):
                return
            current, tally = self._round(grid, roster, attendance, current, round_number, plan, listener)
            record = RoundRecord(
                round=round_number,
                scores=client_scores(grid, roster, current, round_number) if asks(round_number) else {},
                metrics=tally.means() if account is None or account.shows_metrics else {},
                epsilon=account.epsilon() if account else None,
                bytes_up=tally.bytes_up,
                bytes_down=tally.bytes_down,
                seconds=time.monotonic() - begun,
                clients=tuple(tally.clients),
                failures=tuple(tally.failures),
                absent=tuple(Failure(round_number, *item) for item in attendance.absent.items()),
                virtual_seconds=None if plan.availability is None else attendance.seconds,
            )
            if not listener.round_done(record, current):
                return

    def _round(
        self,
        grid: Grid,
        roster: Roster,
        attendance: Attendance,
        current: Arrays,
        round_number: int,
        plan: Plan,
        listener: Listener,
    ) -> tuple[dict[str, Any], _Tally]:
        cohort = attendance.present
        task = self.task(current, round_number, plan)
        content, own = write_task(task), {partition: self.personal(partition) for partition in cohort}
        messages = [
            Message(
                with_extras(content, own[partition]) if own[partition] else content,
                roster.node_of(partition),
                MessageType.TRAIN,
                group_id=str(round_number),
            )
            for partition in cohort
        ]
        down = _num_bytes(task) * len(cohort)
        down += sum(num_bytes(extra) for extras in own.values() for extra in extras.values())
        tally = _Tally(down, Conflict(current, roster, cohort, self.buffers))

        def updates() -> Iterator[LocalUpdate]:
            for done, (partition, reply) in enumerate(zip(cohort, replies_in_order(grid, messages), strict=True), 1):
                update = self._receive(reply, partition, current, round_number, tally, listener, plan.account)
                listener.client_done(round_number, done, len(cohort))
                if update is not None and update.num_examples > 0:
                    tally.conflict.add(update)
                    yield update
            if not at_server:
                _require_quorum(tally, plan.quorum, attendance, round_number)
            elif round_number == 1 and not tally.clients and len({each.reason for each in tally.failures}) == 1:
                # who does not answer counts as zero, but all at once and for one reason tell of a wrong setting
                _require_quorum(tally, 1, attendance, round_number)

        account = plan.account
        at_server = account is not None and account.at_server
        stream = updates()
        if account is not None and at_server:
            released = account.release(current, stream, round_number, self.buffers, roster.num_examples)
            stream = iter([released])
        first = next(stream, None)
        merged = dict(current) if first is None else self.merge(current, chain([first], stream), round_number)
        return dict(plan.teach(merged, round_number)) if plan.teach else merged, tally

    def _receive(
        self,
        reply: Message,
        partition: int,
        current: Arrays,
        round_number: int,
        tally: _Tally,
        listener: Listener,
        account: Account | None,
    ) -> LocalUpdate | None:
        """Return the update when it is sound; otherwise count a failure and return None."""
        if reply.has_error():
            reason, details = last_line(reply.error.reason), reply.error.reason or ""
        else:
            extras = {**self.extras(current), **(account.extras if account else {})}
            try:
                update = read_sound(reply, partition, round_number, current, self.metrics, extras)
            except ValueError as error:
                reason = details = str(error)
            else:
                tally.add(update)
                if account:
                    account.received(update)
                return update
        tally.failures.append(Failure(round_number, partition, reason))
        listener.client_failed(tally.failures[-1], details)
        return None


def _num_bytes(message: TrainTask | LocalUpdate) -> int:
    """Return the payload of a message, what it brings beside the model included."""
    return num_bytes(message.arrays) + sum(num_bytes(extra) for extra in message.extras.values())


def _enough_left(roster: Roster, plan: Plan, account: Account, round_number: int, used_up: Collection[int]) -> bool:
    """Return whether as many clients as a round needs may still be asked; False, and `stopped`, where they may not."""
    labelled, fewest = round_number <= plan.labelled_rounds, plan.quorum or 1
    others = (partition for partition in range(plan.num_clients) if partition not in used_up)
    left = sum(roster.takes_part(partition, labelled=labelled) for partition in others)
    if left < fewest:
        what = f"round {round_number} needs {fewest} clients, {left} are not at privacy.max_rounds_per_client yet"
        account.stopped = f"{what} [PRIV-BUDGET]"
    return left >= fewest


def _attendance(roster: Roster, plan: Plan, round_number: int, now: float, used_up: Collection[int]) -> Attendance:
    """Return the cohort of a round, and who of it answers."""
    model, labelled = plan.availability, round_number <= plan.labelled_rounds
    drawn = plan.account.draw(round_number) if plan.account else None

    def asked(partition: int) -> bool:
        allowed = partition not in used_up and (drawn is None or partition in drawn)
        return allowed and roster.takes_part(partition, labelled=labelled)

    size = plan.cohort if drawn is None else None
    if model is None:
        chosen = asked if labelled or plan.needs_labels or drawn is not None or used_up else None
        return Attendance(tuple(roster.sample(plan.seed, round_number, size, chosen)), {}, 0.0)
    cohort = roster.sample(
        plan.seed,
        round_number,
        size,
        lambda partition: model.online(plan.seed, partition, now) and asked(partition),
    )
    sizes = [roster.num_examples(partition) for partition in cohort]
    return attend(model, plan.seed, round_number, cohort, sizes)


def _require_quorum(tally: _Tally, quorum: int | None, attendance: Attendance, round_number: int) -> None:
    """Raise RunError when fewer clients answered than the round needs."""
    asked, got = len(attendance.present), len(tally.clients)
    if got >= (asked if quorum is None else quorum):
        return
    if not tally.failures:
        raise RunError(
            f"round {round_number}: {got} clients are available, quorum={quorum} ({len(attendance.absent)} absent)"
        )
    first = tally.failures[0]
    count = f"{asked - got} of {asked} clients failed"
    wanted = "a smaller quorum goes on without them" if got else "none is left to average"
    raise RunError(f"round {round_number}, partition {first.partition}: {first.reason} ({count}; {wanted})")
