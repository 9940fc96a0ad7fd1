"""The numbers of a sweep: a row a point, and groups of points that differ in their seed alone."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedssl.report.units import human_number
from fedssl.sweep.study import SEED, Outcome

UNTRAINED = "untrained "


@dataclass(frozen=True, slots=True)
class Group:
    """The points that differ in their seed alone.

    Attributes:
        labels: What they have in common.
        outcomes: Of the points.
    """

    labels: Mapping[str, str]
    outcomes: tuple[Outcome, ...]

    def mean(self, name: str) -> float | None:
        """Return the mean of a number over the points that have it, or None."""
        values = self._values(name)
        return statistics.fmean(values) if values else None

    def spread(self, name: str) -> float:
        """Return the standard deviation of a number over the points that have it; 0 for one."""
        values = self._values(name)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def differences(self, name: str, other: str) -> list[float]:
        """Return one number minus another of each point that has both."""
        having = [outcome.numbers for outcome in self.outcomes if {name, other} <= outcome.numbers.keys()]
        return [numbers[name] - numbers[other] for numbers in having]

    def cell(self, name: str) -> str:
        """Return the mean and, of several points, the standard deviation of a number; a dash where it is missing."""
        mean = self.mean(name)
        spread = f" ± {human_number(self.spread(name))}" if len(self.outcomes) > 1 else ""
        return "-" if mean is None else human_number(mean) + spread

    @property
    def status(self) -> str:
        """What came of the points: "3 done", or "2 done, 1 failed: REASON"."""
        reasons: dict[str, list[str]] = {}
        for outcome in self.outcomes:
            reasons.setdefault(outcome.status, []).append(outcome.reason)
        return ", ".join(
            f"{len(each)} {status}" + (f": {each[0]}" if each[0] else "") for status, each in reasons.items()
        )

    def _values(self, name: str) -> list[float]:
        return [outcome.numbers[name] for outcome in self.outcomes if name in outcome.numbers]


def groups_of(outcomes: Iterable[Outcome]) -> list[Group]:
    """Return the groups of points that differ in their seed alone, in the order of their first points."""
    found: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(tuple((axis, label) for axis, label in outcome.labels.items() if axis != SEED), []).append(
            outcome
        )
    return [Group(dict(labels), tuple(each)) for labels, each in found.items()]


def axes_of(points: Iterable[Outcome | Group]) -> list[str]:
    """Return the axes on which points have labels."""
    return list(dict.fromkeys(axis for point in points for axis in point.labels))


def csv_text(outcomes: Sequence[Outcome], names: Sequence[str]) -> str:
    """Return a header and a row a point: labels, status, reason, seconds and numbers; what is missing is empty."""
    labels = axes_of(outcomes)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*labels, "status", "reason", "seconds", *names])
    for outcome in outcomes:
        own = [outcome.labels.get(axis, "") for axis in labels]
        numbers = [outcome.numbers.get(name, "") for name in names]
        writer.writerow([*own, outcome.status, outcome.reason, f"{outcome.seconds:.3f}", *numbers])
    return stream.getvalue()


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
