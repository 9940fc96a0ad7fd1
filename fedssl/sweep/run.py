"""Runs the points of a sweep one by one or several at once, goes on past those that fail, and reports all of them."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed

from fedssl.report.units import human_number, human_seconds
from fedssl.sweep.plan import Sweep
from fedssl.sweep.point import read_outcome, run_point
from fedssl.sweep.study import POINTS, Outcome, Point, Study, Train

COMPLETED, FAILED = 0, 3


def run_sweep(sweep: Sweep, train: Train) -> int:
    """Run what is left of a sweep, write its report, and return 0, or 3 where a point failed.

    A point that is done or that was refused is not run again; one that failed is.

    Args:
        sweep: What to run.
        train: Runs the overrides of one run; importable by its name where there are several processes.

    Raises:
        ConfigError: The directory holds points with other settings.
        KeyboardInterrupt: As it was; the same command goes on.
    """
    known = {point.name: read_outcome(sweep.folder / POINTS / point.name, point) for point in sweep.points}
    ended = {name: each for name, each in known.items() if each is not None and each.status in ("done", "refused")}
    left = [point for point in sweep.points if point.name not in ended]
    if ended:
        _say(f"{len(ended)} of {len(sweep.points)} points were run before")
    for name, outcome in _outcomes(sweep, left, train):
        ended[name] = outcome
        _say(
            f"{len(ended)}/{len(sweep.points)}  {name}  {_tell(outcome, sweep.study)}  {human_seconds(outcome.seconds)}"
        )
    outcomes = [ended[point.name] for point in sweep.points]
    path = sweep.study.report(sweep.folder, outcomes)
    counts = Counter(outcome.status for outcome in outcomes)
    sys.stdout.write(", ".join(f"{counts[status]} {status}" for status in ("done", "refused", "failed", "violated")))
    sys.stdout.write(f"\nreport: {path}\n")
    return FAILED if counts["failed"] + counts["violated"] else COMPLETED


def _outcomes(sweep: Sweep, points: Sequence[Point], train: Train) -> Iterator[tuple[str, Outcome]]:
    """Yield the name of each point and what came of it, as they end."""
    folder = sweep.folder / POINTS
    if sweep.processes == 1 or len(points) < 2:
        yield from ((each.name, run_point(folder / each.name, each, sweep.study, train)) for each in points)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(sweep.processes, len(points)), context, _begin) as pool:
        futures = {pool.submit(run_point, folder / each.name, each, sweep.study, train): each for each in points}
        try:
            for future in as_completed(futures):
                point = futures[future]
                try:
                    yield point.name, future.result()
                except BrokenExecutor:
                    reason = "a process of the sweep died; the same command runs this point again"
                    yield point.name, Outcome(point.labels, point.overrides, "failed", reason, 0.0, {})
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _end(multiprocessing.active_children())
            raise


def _begin() -> None:
    """Leave the keyboard to the parent, and the other cores to the other processes; end when the parent is killed."""
    import torch

    threading.Thread(target=_outlive_nobody, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _outlive_nobody() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _end(children: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for child in children:
        child.terminate()


def _tell(outcome: Outcome, study: Study) -> str:
    if outcome.reason:
        return f"{outcome.status}: {outcome.reason}"
    told = [name for name in (*list(outcome.numbers)[:2], *study.told) if name in outcome.numbers]
    return ", ".join(f"{name} {human_number(outcome.numbers[name])}" for name in told)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
