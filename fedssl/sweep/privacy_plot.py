"""Utility and leakage against epsilon, on one axis."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedssl.sweep.curves import GREY, Look, add_legend, draw_curve, looks_of
from fedssl.sweep.privacy_table import (
    AUC,
    BOUND,
    EPSILON,
    EXAMPLE_BOUND,
    MECHANISM,
    MEMORY,
    NO_EPSILON,
    epsilon_of,
    frontier,
)
from fedssl.sweep.table import UNTRAINED, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ASIDE = 1.025
_LEAKS = (BOUND, EXAMPLE_BOUND, AUC, MEMORY)
_TITLES = {
    BOUND: "lower bound on epsilon (95 %), who sees every release",
    EXAMPLE_BOUND: "lower bound of an example (95 %), who has the encoder",
    AUC: "attack AUC, who has the encoder",
}
_LEVELS = {EXAMPLE_BOUND: (0.0, "nothing is shown"), AUC: (0.5, "chance"), MEMORY: (0.0, "nothing is memorised")}


def save_plot(path: Path, groups: Sequence[Group], scores: Sequence[str]) -> bool:
    """Draw a panel a score, and one of both lower bounds, the attack and SSLMem each; epsilon "none" is at the right.

    A colour is an objective, a marker a mechanism, a bar the standard deviation over seeds; a ring marks the Pareto
    frontier of a mechanism.

    Returns:
        Whether there was anything to draw; nothing is written where there was not.
    """
    drawn = [
        group
        for group in groups
        if epsilon_of(group) is not None and any(group.mean(name) is not None for name in scores)
    ]
    if not drawn:
        return False
    from matplotlib.figure import Figure

    leaks = [name for name in _LEAKS if any(group.mean(name) is not None for group in drawn)]
    columns = max(len(scores), len(leaks))
    figure = Figure(figsize=(1.2 + 4.2 * columns, 8 if leaks else 4), layout="constrained")
    looks = looks_of({_curve(group): (_kind(group), group.labels.get(MECHANISM, "")) for group in drawn})
    ticks = _ticks(drawn)
    for row, names in enumerate([scores, leaks] if leaks else [scores]):
        for column, name in enumerate(names):
            axes = figure.add_subplot(2 if leaks else 1, columns, row * columns + column + 1)
            _panel(axes, drawn, name, looks, ticks)
            if name in scores:
                _utility(axes, drawn, name, looks, max(ticks))
            elif name == BOUND:
                finite = [place for place, label in ticks.items() if label != NO_EPSILON]
                axes.plot(finite, finite, color=GREY, linestyle="--", label="lower bound = epsilon")
            else:
                level, label = _LEVELS[name]
                axes.axhline(level, color=GREY, linestyle="--", label=label)
    add_legend(figure)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def _ticks(groups: Sequence[Group]) -> Mapping[float, str]:
    """Return the label of each place on the axis; no epsilon is one step right of the largest."""
    epsilons = {epsilon for group in groups if (epsilon := epsilon_of(group)) is not None}
    finite = sorted(epsilon for epsilon in epsilons if math.isfinite(epsilon))
    return {**{epsilon: f"{epsilon:g}" for epsilon in finite}, 2 * finite[-1] if finite else 1.0: NO_EPSILON}


def _place(group: Group, look: Look, last: float) -> float:
    """Return where a group is on the axis, whose `last` place is that of no epsilon."""
    epsilon = epsilon_of(group)
    place = last if epsilon is None or math.isinf(epsilon) else epsilon
    return place * math.pow(_ASIDE, look.aside)


def _kind(group: Group) -> str:
    return ", ".join(label for axis, label in group.labels.items() if axis not in (EPSILON, MECHANISM))


def _curve(group: Group) -> str:
    return ", ".join(label for axis, label in group.labels.items() if axis != EPSILON) or "all"


def _panel(
    axes: "Axes", groups: Sequence[Group], name: str, looks: Mapping[str, Look], ticks: Mapping[float, str]
) -> None:
    for curve, look in looks.items():
        own = [group for group in groups if _curve(group) == curve]
        draw_curve(axes, own, name, look, partial(_place, look=look, last=max(ticks)), curve)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_xlim(min(ticks) / 1.4, max(ticks) * 1.4)
    axes.set(xlabel="epsilon", title=_TITLES.get(name, name))
    axes.grid(axis="y", color="#e5e7eb")


def _utility(axes: "Axes", groups: Sequence[Group], score: str, looks: Mapping[str, Look], last: float) -> None:
    """Draw the untrained encoder and the Pareto frontiers."""
    untrained = [mean for group in groups if (mean := group.mean(UNTRAINED + score)) is not None]
    if untrained:
        axes.axhline(sum(untrained) / len(untrained), color=GREY, linestyle="--", label="untrained encoder")
    best = [group for group, marked in zip(groups, frontier(groups, score), strict=True) if marked]
    xs = [_place(group, looks[_curve(group)], last) for group in best]
    ys = [group.mean(score) or 0.0 for group in best]
    axes.scatter(
        xs, ys, s=130, facecolors="none", edgecolors="#111827", linewidths=1.3, label="Pareto frontier", zorder=3
    )
