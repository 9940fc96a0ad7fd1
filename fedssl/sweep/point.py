"""One point: train it, train its twin, attack its encoder, and write down what came of it."""

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fedssl.errors import ConfigError, DataError, RunError
from fedssl.report.records import RunResult, plain
from fedssl.report.rundir import RunDirectory
from fedssl.sweep.plan import Audit, Point

Status = Literal["done", "refused", "failed", "violated"]
Train = Callable[[Sequence[str]], object]
OUTCOME, AUDIT, LOG = "point.json", "audit.json", "log.txt"
_CONFIDENCE, _ATTACK = "0.95", "alignment gained"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a point.

    Attributes:
        labels: Of the point.
        overrides: Of the point.
        status: "done"; "refused", where settings do not go together; "failed"; "violated", where an attack shows more
            than a guarantee allows.
        reason: One line, unless it is done.
        seconds: Wall-clock time of its run, its twin and its audit, in seconds.
        numbers: By name: the scores, those of the untrained encoder ("untrained kNN"), "epsilon spent", "delta",
            "epsilon of an example", "lower bound" (95 %), "attack AUC" and "SSLMem", those that it has.
    """

    labels: Mapping[str, str]
    overrides: tuple[str, ...]
    status: Status
    reason: str
    seconds: float
    numbers: Mapping[str, float]


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


def run_point(folder: Path, point: Point, audit: Audit | None, train: Train) -> Outcome:
    """Run a point, or go on with it, and write down what came of it; an exception becomes its reason.

    Args:
        folder: Of the point.
        point: What to run.
        audit: How to attack its encoder; None trains no twin and attacks nothing.
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
            numbers = _numbers(folder, point, audit, train)
            if numbers.pop("violated", 0.0):
                status, reason = "violated", f"an attack shows more than a guarantee allows, see {AUDIT}"
        except Exception as error:  # whatever it is, the other points are run
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            traceback.print_exc(file=sys.stderr)
            status, reason = ("refused" if isinstance(error, ConfigError) else "failed"), _one_line(error)
    outcome = Outcome(point.labels, point.overrides, status, reason, time.monotonic() - begun, numbers)
    _write(folder / OUTCOME, asdict(outcome))
    return outcome


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigError | DataError | RunError) else f"{type(error).__name__}: {text}"


def _numbers(folder: Path, point: Point, audit: Audit | None, train: Train) -> dict[str, float]:
    result = _trained(folder / "run", point.overrides, train)
    numbers: dict[str, Any] = dict(result.scores)
    numbers |= {f"untrained {name}": value for name, value in result.untrained_scores.items()}
    for statement in (result.privacy or [])[:1]:  # the first is of the mechanism's own unit
        numbers |= {"epsilon spent": statement["epsilon"], "delta": statement["delta"]}
    if audit is not None:
        _trained(folder / "twin", [*point.overrides, "canaries.flipped=true"], train)
        numbers |= _attacked(_audited(folder, audit))
    return {name: value for name, value in numbers.items() if value is not None}


def _trained(path: Path, overrides: Sequence[str], train: Train) -> RunResult:
    """Return the result of a run, which is run or gone on with where it has not ended."""
    quoted = str(path.resolve()).replace("\\", "\\\\").replace("'", "\\'")  # as an override has it
    result = RunDirectory(path).read_result()
    if result is None or result.status != "completed":
        train([*overrides, f"run_dir='{quoted}'", "resume=auto"])
        result = RunDirectory(path).read_result()
    if result is None:
        raise RunError(f"{path}: the run left no result")
    return result


def _audited(folder: Path, audit: Audit) -> Mapping[str, Any]:
    """Return the audit of a point, which is made where it is not there."""
    path = folder / AUDIT
    if not path.exists():
        from fedssl.privacy.audit.run import audit_run

        found = audit_run(folder / "run", folder / "twin", num_views=audit.num_views, max_examples=audit.max_examples)
        _write(path, found.to_dict())
    values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _attacked(audit: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an audit that a sweep compares; of several guarantees the tightest."""
    claim = min(audit["claims"], key=lambda each: float("inf") if each["epsilon"] is None else each["epsilon"])
    return {
        "epsilon of an example": claim["epsilon"],
        "lower bound": claim["lower"][_CONFIDENCE],
        "attack AUC": audit["attacks"][_ATTACK]["auc"],
        "SSLMem": audit["sslmem"]["candidate"]["mean"],
        "violated": float(audit["violated"]),
    }


def _write(path: Path, values: Mapping[str, object]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plain(values), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
