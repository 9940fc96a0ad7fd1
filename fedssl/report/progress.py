"""What a person sees in the terminal while a run goes on."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedssl.report.records import Failure, RoundRecord
from fedssl.report.units import human_number, human_seconds

if TYPE_CHECKING:
    from rich import progress


class Progress:
    """A bar on stderr with a line per round; the lines alone when stderr is not a terminal.

    Use it as a context manager around the rounds.
    """

    def __init__(self) -> None:
        self._rounds = 0
        self._online = -1
        self._bar: progress.Progress | None = None
        self._tasks: tuple[progress.TaskID, progress.TaskID] | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._tasks = None, None

    def waiting(self, online: int, wanted: int) -> None:
        """Say, once for each number, how many clients have come of those that are wanted."""
        if online != self._online:
            self._online = online
            self._write(f"waiting for clients: {online} of {wanted} are online")

    def begin(self, rounds: int, done: int = 0) -> None:
        """Say how many rounds there will be, and how many an earlier process has done."""
        self._rounds = rounds
        if done:
            self._write(f"goes on after round {done}/{rounds}")
        if self._bar is not None:
            self._tasks = (
                self._bar.add_task("rounds", total=rounds, completed=done),
                self._bar.add_task("clients", total=None),
            )

    def protecting(self, partition: int, what: str, done: int, total: int) -> None:
        """Show how far a client is with the noise for its images."""
        if self._bar is not None and self._tasks is not None:
            self._bar.update(self._tasks[1], description=f"client {partition}: {what}", completed=done, total=total)

    def protected(self, clients: int, seconds: float) -> None:
        """Say that the clients that protect their images have done so."""
        self._write(f"protection of {_count(clients, 'client')}  {human_seconds(seconds)}")

    def client_done(self, round: int, done: int, total: int) -> None:
        """Show that `done` of the round's `total` clients have answered."""
        if self._bar is not None and self._tasks is not None:
            self._bar.update(self._tasks[1], description=f"clients of round {round}", completed=done, total=total)

    def client_failed(self, failure: Failure, file: str) -> None:
        """Write why a client failed, when it does, and the file that tells the rest."""
        where = f"round {failure.round}, partition {failure.partition}"
        self._write(f"{where} failed: {failure.reason}  ({file})")

    def round_done(self, record: RoundRecord) -> None:
        """Write the round's line and move the bar."""
        self._write(round_line(record, self._rounds))
        if self._bar is not None and self._tasks is not None:
            self._bar.update(self._tasks[0], completed=record.round)

    def _write(self, line: str) -> None:
        if self._bar is None:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        else:
            self._bar.console.print(line, markup=False, highlight=False)


def round_line(record: RoundRecord, rounds: int) -> str:
    """Return a line such as "round 3/20  loss 1.62  R@1 0.71  5 clients  2.1 s"."""
    parts = [f"round {record.round}/{rounds}"]
    if "loss" in record.metrics:
        parts.append(f"loss {human_number(record.metrics['loss'], 2)}")
    parts += [f"{name} {human_number(value, 2)}" for name, value in list(record.scores.items())[:3]]
    if record.epsilon is not None:
        parts.append(f"epsilon {human_number(record.epsilon, 2)}")
    parts.append(_count(len(record.clients), "client"))
    if record.failures:
        parts.append(f"{len(record.failures)} failed")
    if record.absent:
        parts.append(f"{len(record.absent)} absent")
    return "  ".join([*parts, human_seconds(record.seconds)])


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _bar() -> "progress.Progress":
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
