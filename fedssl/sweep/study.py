"""What a sweep is for: what is done with each of its runs, and how all of them are told."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fedssl.report.records import RunResult, plain

SEED = "seed"
POINTS = "points"
Axes = Mapping[str, Mapping[str, Sequence[str]]]
Status = Literal["done", "refused", "failed", "violated"]
Train = Callable[[Sequence[str]], object]


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep.

    Attributes:
        labels: Its value on each axis; that on "seed" is averaged over.
        overrides: What it is made from.
    """

    labels: Mapping[str, str]
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its directory."""
        return directory_name(self.labels)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a point.

    Attributes:
        labels: Of the point.
        overrides: Of the point.
        status: "done"; "refused", where a guarantee would not hold; "failed"; "violated", where an attack shows more
            than a guarantee allows.
        reason: One line, unless it is done.
        seconds: Wall-clock time of its run and of what the study adds, in seconds.
        numbers: By name: the scores, those of the untrained encoder ("untrained kNN"), and what the study adds.
    """

    labels: Mapping[str, str]
    overrides: tuple[str, ...]
    status: Status
    reason: str
    seconds: float
    numbers: Mapping[str, float]


class Study(ABC):
    """What is done with the runs of a sweep.

    Attributes:
        told: Numbers that are told when a point has ended, beside its first two.
    """

    told: ClassVar[tuple[str, ...]] = ()

    def check(self, grids: Sequence[Axes]) -> None:  # noqa: B027
        """Raise ValueError where the axes are not those of the study."""

    @abstractmethod
    def examine(self, folder: Path, point: Point, result: RunResult, train: Train) -> tuple[dict[str, float], str]:
        """Return what is to be known of a run beside its scores, and which guarantee it violates, or "".

        Args:
            folder: Of the point; the run is in its folder `RUN`.
            point: What was run.
            result: Of the run.
            train: Runs the overrides of one more run.
        """

    @abstractmethod
    def report(self, folder: Path, outcomes: Sequence[Outcome]) -> Path:
        """Write the report of a sweep into its folder, and return its page."""


def directory_name(labels: Mapping[str, str]) -> str:
    """Return the name of the directory of the point with these labels."""
    parts = (re.sub(r"[^\w.+-]+", "-", f"{axis}-{label}").strip("-") for axis, label in labels.items())
    return "_".join(parts) or "point"


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write values as JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plain(values), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
