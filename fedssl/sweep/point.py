"""One point: train it, examine it as the study of the sweep does, and write down what came of it."""

import json
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path

from fedssl.errors import ConfigError, DataError, PrivacyError, RunError
from fedssl.report.records import RunResult
from fedssl.report.rundir import RunDirectory
from fedssl.sweep.study import Outcome, Point, Status, Study, Train, write_json

OUTCOME, LOG, RUN = "point.json", "log.txt", "run"


def read_outcome(folder: Path, point: Point) -> Outcome | None:
    """Return what came of a point when it was run before, or None.

    Raises:
        ConfigError: Another point was run in this folder.
    """
    path = folder / OUTCOME
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    outcome = Outcome(**{**values, "overrides": tuple(values["overrides"])})
    if outcome.overrides != point.overrides:
        raise ConfigError(f"{folder}: was run with other settings; choose another sweep_dir")
    return outcome


def run_point(folder: Path, point: Point, study: Study, train: Train) -> Outcome:
    """Run a point, or go on with it, and write down what came of it; an exception becomes its reason.

    Args:
        folder: Of the point.
        point: What to run.
        study: What is done with the run.
        train: Runs the overrides of one run.

    Raises:
        KeyboardInterrupt: The person at the keyboard wants to stop; nothing is written down.
    """
    begun = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    status: Status = "done"
    reason, numbers = "", {}
    with (folder / LOG).open("a", encoding="utf-8") as log, redirect_stderr(log), redirect_stdout(log):
        try:
            result = trained(folder / RUN, point.overrides, train)
            numbers = dict(result.scores)
            numbers |= {f"untrained {name}": value for name, value in result.untrained_scores.items()}
            more, reason = study.examine(folder, point, result, train)
            numbers |= more
            if reason:
                status = "violated"
        except Exception as error:  # whatever it is, the other points are run
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            traceback.print_exc(file=sys.stderr)
            numbers = {}
            status, reason = ("refused" if isinstance(error, PrivacyError) else "failed"), _one_line(error)
    numbers = {name: value for name, value in numbers.items() if value is not None}
    outcome = Outcome(point.labels, point.overrides, status, reason, time.monotonic() - begun, numbers)
    write_json(folder / OUTCOME, asdict(outcome))
    return outcome


def trained(path: Path, overrides: Sequence[str], train: Train) -> RunResult:
    """Return the result of a run, which is run or gone on with where it has not ended."""
    quoted = str(path.resolve()).replace("\\", "\\\\").replace("'", "\\'")  # as an override has it
    result = RunDirectory(path).read_result()
    if result is None or result.status != "completed":
        train([*overrides, f"run_dir='{quoted}'", "resume=auto"])
        result = RunDirectory(path).read_result()
    if result is None:
        raise RunError(f"{path}: the run left no result")
    return result


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).removeprefix("failed: ")
    return text if isinstance(error, ConfigError | DataError | RunError) else f"{type(error).__name__}: {text}"
