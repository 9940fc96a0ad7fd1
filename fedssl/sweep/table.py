"""The numbers of a sweep: a row a point, a row a group of seeds, and which groups no other one beats."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedssl.report.units import human_number
from fedssl.sweep.plan import EPSILON, MECHANISM, NO_EPSILON, SEED
from fedssl.sweep.point import Outcome

PRIVACY = ("epsilon spent", "delta", "epsilon of an example", "lower bound", "attack AUC", "SSLMem")
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

    @property
    def epsilon(self) -> float | None:
        """The label on the axis "epsilon", infinite for "none"; None without that axis."""
        label = self.labels.get(EPSILON)
        return None if label is None else math.inf if label == NO_EPSILON else float(label)

    def mean(self, name: str) -> float | None:
        """Return the mean of a number over the points that have it, or None."""
        values = self._values(name)
        return statistics.fmean(values) if values else None

    def spread(self, name: str) -> float:
        """Return the standard deviation of a number over the points that have it; 0 for one."""
        values = self._values(name)
        return statistics.stdev(values) if len(values) > 1 else 0.0

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


def score_names(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the names of the scores that some point has."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.numbers)
    return [name for name in names if name not in PRIVACY and not name.startswith(UNTRAINED)]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each (epsilon, utility) whether no other is as good in both and better in one."""
    return [
        not any(other[0] <= point[0] and other[1] >= point[1] and other != point for other in points)
        for point in points
    ]


def frontier(groups: Sequence[Group], score: str) -> list[bool]:
    """Return for each group whether it is on the Pareto frontier of its mechanism; without an epsilon none is.

    Mechanisms are not compared: an epsilon of a client and one of an example are promises of different things.
    """
    marked = [False] * len(groups)
    for mechanism in {group.labels.get(MECHANISM) for group in groups}:
        own = [
            (place, (group.epsilon, mean))
            for place, group in enumerate(groups)
            if group.labels.get(MECHANISM) == mechanism
            and group.epsilon is not None
            and (mean := group.mean(score)) is not None
        ]
        for (place, _), best in zip(own, pareto([point for _, point in own]), strict=True):
            marked[place] = best
    return marked


def csv_text(outcomes: Sequence[Outcome]) -> str:
    """Return a header and a row a point: labels, status, reason, seconds and numbers; what is missing is empty."""
    labels = list(dict.fromkeys(axis for outcome in outcomes for axis in outcome.labels))
    scores = score_names(outcomes)
    has = {name for outcome in outcomes for name in outcome.numbers}
    names = [name for name in (*scores, *(UNTRAINED + score for score in scores), *PRIVACY) if name in has]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*labels, "status", "reason", "seconds", *names])
    for outcome in outcomes:
        own = [outcome.labels.get(axis, "") for axis in labels]
        numbers = [outcome.numbers.get(name, "") for name in names]
        writer.writerow([*own, outcome.status, outcome.reason, f"{outcome.seconds:.3f}", *numbers])
    return stream.getvalue()


def group_rows(groups: Sequence[Group], scores: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row a group: labels, mean and spread of each number, the frontier of the first score."""
    labels = list(dict.fromkeys(axis for group in groups for axis in group.labels))
    names = [name for name in (*scores, *PRIVACY) if any(group.mean(name) is not None for group in groups)]
    private = any(group.epsilon is not None for group in groups) and bool(scores)
    marked = frontier(groups, scores[0]) if private else [False] * len(groups)
    rows = [
        [*(group.labels.get(axis, "-") for axis in labels), *(_cell(group, name) for name in names)]
        + (["yes" if best else ""] if private else [])
        + [group.status]
        for group, best in zip(groups, marked, strict=True)
    ]
    return [*labels, *names, *(["frontier"] if private else []), "points"], rows


def _cell(group: Group, name: str) -> str:
    mean = group.mean(name)
    if name == "delta" or mean is None:
        return "-" if mean is None else f"{mean:.2g}"
    spread = f" ± {human_number(group.spread(name))}" if len(group.outcomes) > 1 else ""
    return human_number(mean) + spread


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
