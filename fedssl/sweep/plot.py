"""Utility and leakage against epsilon, on one axis."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedssl.sweep.plan import EPSILON, MECHANISM
from fedssl.sweep.table import UNTRAINED, Group, frontier

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#db2777", "#4b5563")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_GREY = "#9ca3af"
_TITLES = {"lower bound": "lower bound on epsilon (95 %)"}


def save_plot(path: Path, groups: Sequence[Group], scores: Sequence[str]) -> bool:
    """Draw a panel a score, and one of the lower bound, the attack and SSLMem each; epsilon "none" is at the right.

    A colour is an objective, a marker a mechanism, a bar the standard deviation over seeds; a ring marks the Pareto
    frontier of a mechanism.

    Returns:
        Whether there was anything to draw; nothing is written where there was not.
    """
    drawn = [
        group for group in groups if group.epsilon is not None and any(group.mean(name) is not None for name in scores)
    ]
    if not drawn:
        return False
    from matplotlib.figure import Figure

    leaks = [
        name for name in ("lower bound", "attack AUC", "SSLMem") if any(group.mean(name) is not None for group in drawn)
    ]
    names = [*scores, *leaks]
    columns = max(len(scores), len(leaks)) if leaks else len(scores)
    figure = Figure(figsize=(1.2 + 4.2 * columns, 4 * (2 if leaks else 1)), layout="constrained")
    places = _places(drawn)
    looks = _looks(drawn)
    for number, name in enumerate(names):
        row, column = (0, number) if number < len(scores) else (1, number - len(scores))
        axes = figure.add_subplot(2 if leaks else 1, columns, row * columns + column + 1)
        _panel(axes, drawn, name, places, looks)
        if name in scores:
            _utility(axes, drawn, name, places)
        elif name == "lower bound":
            finite = sorted(place for epsilon, place in places.items() if math.isfinite(epsilon))
            axes.plot(finite, finite, color=_GREY, linestyle="--", label="epsilon")
        elif name == "attack AUC":
            axes.axhline(0.5, color=_GREY, linestyle="--", label="chance")
        else:
            axes.axhline(0.0, color=_GREY, linestyle="--", label="nothing is memorised")
    labelled: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    figure.legend(list(labelled.values()), list(labelled), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def _places(groups: Sequence[Group]) -> Mapping[float, float]:
    """Return where each epsilon is on the axis; infinity is one step right of the largest."""
    finite = sorted({group.epsilon for group in groups if group.epsilon is not None and math.isfinite(group.epsilon)})
    return {**{epsilon: epsilon for epsilon in finite}, math.inf: 2 * finite[-1] if finite else 1.0}


def _looks(groups: Sequence[Group]) -> Mapping[str, tuple[str, str]]:
    """Return colour and marker of each curve."""
    kinds = list(dict.fromkeys(_kind(group) for group in groups))
    mechanisms = list(dict.fromkeys(group.labels.get(MECHANISM, "") for group in groups))
    return {
        _curve(group): (
            _COLOURS[kinds.index(_kind(group)) % len(_COLOURS)],
            _MARKERS[mechanisms.index(group.labels.get(MECHANISM, "")) % len(_MARKERS)],
        )
        for group in groups
    }


def _kind(group: Group) -> str:
    return ", ".join(label for axis, label in group.labels.items() if axis not in (EPSILON, MECHANISM))


def _curve(group: Group) -> str:
    return ", ".join(label for axis, label in group.labels.items() if axis != EPSILON) or "all"


def _panel(
    axes: "Axes",
    groups: Sequence[Group],
    name: str,
    places: Mapping[float, float],
    looks: Mapping[str, tuple[str, str]],
) -> None:
    for curve, (colour, marker) in looks.items():
        own = [group for group in groups if _curve(group) == curve and group.mean(name) is not None]
        own.sort(key=lambda group: group.epsilon or 0.0)
        if own:
            xs, means = [places[group.epsilon or 0.0] for group in own], [group.mean(name) or 0.0 for group in own]
            spreads = [group.spread(name) for group in own]
            axes.errorbar(xs, means, spreads, color=colour, marker=marker, markersize=5, capsize=2, lw=1, label=curve)
    axes.set_xscale("log", base=2)
    ticks = {place: "none" if math.isinf(epsilon) else f"{epsilon:g}" for epsilon, place in places.items()}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    low, high = min(ticks), max(ticks)
    axes.set_xlim(low / 1.3, high * 1.3)
    axes.set(xlabel="epsilon", title=_TITLES.get(name, name))
    axes.grid(axis="y", color="#e5e7eb")


def _utility(axes: "Axes", groups: Sequence[Group], score: str, places: Mapping[float, float]) -> None:
    """Draw the untrained encoder and the Pareto frontiers."""
    untrained = [mean for group in groups if (mean := group.mean(UNTRAINED + score)) is not None]
    if untrained:
        axes.axhline(sum(untrained) / len(untrained), color=_GREY, linestyle="--", label="untrained encoder")
    best = [group for group, marked in zip(groups, frontier(groups, score), strict=True) if marked]
    xs, ys = [places[group.epsilon or 0.0] for group in best], [group.mean(score) or 0.0 for group in best]
    axes.scatter(
        xs, ys, s=130, facecolors="none", edgecolors="#111827", linewidths=1.3, label="Pareto frontier", zorder=3
    )
