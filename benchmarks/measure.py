"""What the engine's benchmarks share: a federation of a function, a clock for its rounds, a table in a file."""

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedssl.arrays import Arrays
from fedssl.config import Engine
from fedssl.report.records import Failure, RoundRecord
from fedssl.report.versions import versions
from fedssl.simulation.engine import open_grid
from fedssl.simulation.grid import SimulationGrid
from fedssl.wire import LocalUpdate, TrainTask, read_task, write_update
from strategies.averaging import Averaging
from strategies.base import Plan

RESULTS = Path(__file__).parent / "results"
Work = Callable[[TrainTask, int], LocalUpdate]


@dataclass
class Client:
    """A client whose work is a function of its task and its partition; plain, so that it travels to workers."""

    work: Work

    def __call__(self) -> ClientApp:
        """Return the app."""
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            update = self.work(read_task(message.content), int(context.node_config["partition-id"]))
            return Message(write_update(update), reply_to=message)

        return app


@dataclass
class Clock:
    """Listens to a run and takes the time at the end of each round."""

    times: list[float] = field(default_factory=lambda: [time.perf_counter()])
    arrays: Arrays = field(default_factory=dict)

    def before_training(self, scores: Mapping[str, float]) -> None:
        """No client scores anything."""

    def waiting(self, online: int, wanted: int) -> None:
        """Nobody is waited for in a simulation."""

    def client_done(self, round_number: int, done: int, total: int) -> None:
        """A client is done."""

    def client_failed(self, failure: Failure, details: str) -> None:
        """Raise: a benchmark with failures measures something else."""
        raise RuntimeError(details)

    def round_done(self, record: RoundRecord, arrays: Arrays) -> bool:
        """Take the time."""
        self.times.append(time.perf_counter())
        self.arrays = arrays
        return True

    @property
    def seconds(self) -> list[float]:
        """Time of each round but the first, in which workers start and warm up."""
        return [after - before for before, after in zip(self.times[1:-1], self.times[2:], strict=True)]


def run(grid: SimulationGrid, initial: Arrays, num_clients: int, cohort: int, rounds: int, examples: int = 1) -> Clock:
    """Run FedAvg on an open grid and return its clock."""
    clock = Clock()
    plan = Plan(rounds, 0, num_clients, cohort, None, num_examples=lambda _: examples)
    Averaging().start(grid, initial, plan, clock, frozenset())
    return clock


def ray(work: Work, num_clients: int, num_workers: int) -> "SimulationGrid":
    """Return a context with the Ray grid."""
    return open_grid(Engine("ray", num_workers=num_workers, max_retries=0), Client(work), num_clients)


def returned(task: TrainTask, partition: int) -> LocalUpdate:
    """Return what came: the work of a client whose engine alone is measured."""
    return LocalUpdate(partition, task.round, task.arrays, 1, {})


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def report(
    name: str,
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    private: Collection[str] = (),
) -> None:
    """Write `results/NAME.md` with the table and what it was measured on, and print it.

    Args:
        name: Of the file.
        title: Of the table.
        header: Names of the columns.
        rows: Cells.
        notes: Lines below the table.
        private: Words of the command that are paths of this machine; "DIR" takes their place.
    """
    words = ["DIR" if word in private else word for word in sys.argv[1:]]
    lines = [
        f"# {title}",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *notes,
        "",
        f"- date: {datetime.now(UTC):%Y-%m-%d}",
        f"- machine: {processor()}, {os.cpu_count()} cores",
        f"- versions: {', '.join(f'{library} {version}' for library, version in versions().items())}",
        f"- command: `python -m {shlex.join([f'benchmarks.{Path(sys.argv[0]).stem}', *words])}`",
    ]
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"{name}.md"
    out.write_text("\n".join(lines) + "\n")
    sys.stdout.write(out.read_text())


def arguments(doc: str | None, **defaults: int) -> Mapping[str, int]:
    """Return whole numbers from the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    return vars(parser.parse_args())
