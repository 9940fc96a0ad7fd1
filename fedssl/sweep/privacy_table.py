"""What the points of a privacy sweep spend and betray, and which of them no other one beats."""

import math
import statistics
from collections.abc import Iterable, Sequence

from fedssl.sweep.study import Outcome
from fedssl.sweep.table import UNTRAINED, Group, axes_of

EPSILON, MECHANISM = "epsilon", "mechanism"
NO_EPSILON = "none"
BOUND, CEILING = "lower bound", "most it could be"
EXAMPLE_BOUND, EXAMPLE_CEILING = "lower bound of an example", "most that could be"
AUC, TPR, MEMORY, TOP = "attack AUC", "TPR at 1 %", "SSLMem", "SSLMem, top 1 %"
SPENT, OF_EXAMPLE = "epsilon spent", "epsilon of an example"
PRIVACY = (SPENT, "delta", BOUND, CEILING, OF_EXAMPLE, EXAMPLE_BOUND, EXAMPLE_CEILING, AUC, TPR, MEMORY, TOP)


def epsilon_of(group: Group) -> float | None:
    """Return the label on the axis "epsilon", infinite for "none"; None without that axis."""
    label = group.labels.get(EPSILON)
    return None if label is None else math.inf if label == NO_EPSILON else float(label)


def score_names(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the names of the scores that some point has."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.numbers)
    return [name for name in names if name not in PRIVACY and not name.startswith(UNTRAINED)]


def column_names(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the names of all numbers that some point has: scores, untrained scores, and what is spent and betrayed."""
    has = {name for outcome in outcomes for name in outcome.numbers}
    scores = score_names(outcomes)
    return [name for name in (*scores, *(UNTRAINED + score for score in scores), *PRIVACY) if name in has]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each (epsilon, utility) whether no other is as good in both and better in one."""
    return [
        not any(other[0] <= point[0] and other[1] >= point[1] and other != point for other in points)
        for point in points
    ]


def frontier(groups: Sequence[Group], score: str) -> list[bool]:
    """Return for each group whether it is on the Pareto frontier of its mechanism; without an epsilon none is.

    The encoder that the runs began with costs nothing, so what does not beat it is not on a frontier. Mechanisms are
    not compared: an epsilon of a client and one of an example are promises of different things.
    """
    marked = [False] * len(groups)
    for mechanism in {group.labels.get(MECHANISM) for group in groups}:
        own = [
            (place, (epsilon, mean))
            for place, group in enumerate(groups)
            if group.labels.get(MECHANISM) == mechanism
            and (epsilon := epsilon_of(group)) is not None
            and (mean := group.mean(score)) is not None
        ]
        begun = [mean for place, _ in own if (mean := groups[place].mean(UNTRAINED + score)) is not None]
        points = [point for _, point in own] + ([(0.0, statistics.fmean(begun))] if begun else [])
        for (place, _), best in zip(own, pareto(points), strict=False):
            marked[place] = best
    return marked


def group_rows(groups: Sequence[Group], scores: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row a group: labels, mean and spread of each number.

    Of the first score there are also its gain over the encoder that a run began with, and the frontier.
    """
    labels = axes_of(groups)
    names = [name for name in (*scores, *PRIVACY) if any(group.mean(name) is not None for group in groups)]
    private = any(epsilon_of(group) is not None for group in groups) and bool(scores)
    marked = frontier(groups, scores[0]) if private else [False] * len(groups)
    rows = [
        [*(group.labels.get(axis, "-") for axis in labels), *(_cell(group, name) for name in names)]
        + ([_gain(group, scores[0]), "yes" if best else ""] if private else [])
        + [group.status]
        for group, best in zip(groups, marked, strict=True)
    ]
    more = [f"{scores[0]} gained", "frontier"] if private else []
    return [*labels, *names, *more, "points"], rows


def _gain(group: Group, score: str) -> str:
    """Return by how much a score is above that of the encoder that each run began with; "none" within its spread."""
    gains = group.differences(score, UNTRAINED + score)
    if not gains:
        return "-"
    mean, spread = statistics.fmean(gains), statistics.stdev(gains) if len(gains) > 1 else 0.0
    return f"{mean:+.3f} ± {spread:.3f}{'' if mean > spread else ', none'}"


def _cell(group: Group, name: str) -> str:
    mean = group.mean(name)
    return f"{mean:.2g}" if name == "delta" and mean is not None else group.cell(name)
