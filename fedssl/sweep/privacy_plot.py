"""Utility and leakage against epsilon: a column a mechanism, a row a number, on one axis."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedssl.sweep.curves import GREY, Look, add_legend, draw_curve, looks_of
from fedssl.sweep.privacy_table import (
    AUC,
    BOUND,
    CEILING,
    EPSILON,
    EXAMPLE_BOUND,
    EXAMPLE_CEILING,
    MECHANISM,
    MEMORY,
    NO_EPSILON,
    OF_EXAMPLE,
    SPENT,
    epsilon_of,
    frontier,
)
from fedssl.sweep.table import UNTRAINED, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ASIDE = 1.04
_NAMES = {BOUND: "lower bound\nfrom every release", EXAMPLE_BOUND: "lower bound\nfrom the encoder"}
_UPPER = {BOUND: (SPENT, CEILING), EXAMPLE_BOUND: (OF_EXAMPLE, EXAMPLE_CEILING)}
_LEVELS = {AUC: 0.5, MEMORY: 0.0}


def save_plot(path: Path, groups: Sequence[Group], scores: Sequence[str]) -> bool:
    """Draw a column a mechanism and a row a number: scores, both lower bounds, the attack and SSLMem.

    Epsilon "none" is at the right of every column. A colour is an objective, a bar the standard deviation over seeds; a
    ring marks the Pareto frontier of a mechanism.

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

    rows = [*scores, *_UPPER, *_LEVELS]
    rows = [name for name in rows if any(group.mean(name) is not None for group in drawn)]
    columns = _columns(drawn)
    figure = Figure(figsize=(3.2 * len(columns) + 2.4, 1.9 * len(rows) + 0.8), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    looks, ticks = looks_of({_kind(group): (_kind(group), "") for group in drawn}), _ticks(drawn)
    for name, line in zip(rows, panels, strict=True):
        line[0].set_ylabel(_NAMES.get(name, name))
        for (mechanism, own), axes in zip(columns.items(), line, strict=True):
            for kind, look in looks.items():
                of_kind = [group for group in own if _kind(group) == kind]
                draw_curve(axes, of_kind, name, look, partial(_place, look=look, last=max(ticks)), kind)
            _beside(axes, own, name, ticks)
            if name in scores:
                _frontier(axes, groups, mechanism, name, looks, max(ticks))
    for axes, mechanism in zip(panels[0], columns, strict=True):
        axes.set_title(mechanism)
    for axes in panels[-1]:
        axes.set_xlabel("epsilon of the mechanism's unit")
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
        axes.set_xlim(min(ticks) / 1.4, max(ticks) * 1.4)
    seeds = max(len(group.outcomes) for group in drawn)
    add_legend(figure, f"mean and standard\ndeviation, {seeds} seeds" if seeds > 1 else None)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def _columns(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the groups of each mechanism, each beside those without an epsilon."""
    open_ones = [group for group in groups if math.isinf(epsilon_of(group) or 0.0)]
    private = [group for group in groups if group not in open_ones]
    names = dict.fromkeys(group.labels.get(MECHANISM, "") for group in private or open_ones)
    return {name: [group for group in private if group.labels.get(MECHANISM, "") == name] + open_ones for name in names}


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
    return ", ".join(label for axis, label in group.labels.items() if axis not in (EPSILON, MECHANISM)) or "all"


def _beside(axes: "Axes", groups: Sequence[Group], name: str, ticks: Mapping[float, str]) -> None:
    """Draw what a number is compared with: the encoder that runs began with, an upper bound, or a level."""
    axes.grid(axis="y", color="#e5e7eb")
    if name in _UPPER:
        promised, most = _UPPER[name]
        for number, style, label in ((promised, "--", "epsilon"), (most, ":", "most a bound could be")):
            means = {
                place: max(values)
                for place in ticks
                if (values := [mean for group in groups if epsilon_of(group) == place and (mean := group.mean(number))])
            }
            axes.plot(list(means), list(means.values()), color=GREY, linestyle=style, marker="_", label=label)
        return
    level, label = _LEVELS.get(name), "nothing leaks" if name in _LEVELS else "untrained encoder"
    begun = [mean for group in groups if (mean := group.mean(UNTRAINED + name)) is not None]
    if level is None and begun:
        level = sum(begun) / len(begun)
        spread = max(group.spread(UNTRAINED + name) for group in groups)
        axes.axhspan(level - spread, level + spread, color=GREY, alpha=0.15, linewidth=0)
    if level is not None:
        axes.axhline(level, color=GREY, linestyle="-.", label=label)


def _frontier(
    axes: "Axes", groups: Sequence[Group], mechanism: str, score: str, looks: Mapping[str, Look], last: float
) -> None:
    marked = zip(groups, frontier(groups, score), strict=True)
    best = [group for group, rings in marked if rings and group.labels.get(MECHANISM, "") == mechanism]
    axes.scatter(
        [_place(group, looks[_kind(group)], last) for group in best],
        [group.mean(score) or 0.0 for group in best],
        s=110, facecolors="none", edgecolors="#111827", linewidths=1.2, label="Pareto frontier", zorder=3,
    )  # fmt: skip
