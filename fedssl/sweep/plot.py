"""Utility and leakage against epsilon, on one axis."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedssl.sweep.plan import EPSILON, MECHANISM, NO_EPSILON
from fedssl.sweep.table import UNTRAINED, Group, frontier

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#db2777", "#4b5563")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_GREY = "#9ca3af"
_ASIDE = 1.025
_TITLES = {"lower bound": "lower bound on epsilon (95 %)"}
_LEVELS = {"attack AUC": (0.5, "chance"), "SSLMem": (0.0, "nothing is memorised")}


@dataclass(frozen=True, slots=True)
class _Look:
    """How a curve is drawn; its points are a little aside, else the bars of one epsilon hide each other."""

    colour: str
    marker: str
    aside: float
    last: float

    def place(self, group: Group) -> float:
        """Return where a group is on the axis."""
        epsilon = group.epsilon if group.epsilon is not None else math.inf
        return self.aside * (epsilon if math.isfinite(epsilon) else self.last)


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
    columns = max(len(scores), len(leaks))
    figure = Figure(figsize=(1.2 + 4.2 * columns, 8 if leaks else 4), layout="constrained")
    looks, ticks = _looks(drawn), _ticks(drawn)
    for row, names in enumerate([scores, leaks] if leaks else [scores]):
        for column, name in enumerate(names):
            axes = figure.add_subplot(2 if leaks else 1, columns, row * columns + column + 1)
            _panel(axes, drawn, name, looks, ticks)
            if name in scores:
                _utility(axes, drawn, name, looks)
            elif name == "lower bound":
                finite = [place for place, label in ticks.items() if label != NO_EPSILON]
                axes.plot(finite, finite, color=_GREY, linestyle="--", label="lower bound = epsilon")
            else:
                level, label = _LEVELS[name]
                axes.axhline(level, color=_GREY, linestyle="--", label=label)
    labelled: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    figure.legend(list(labelled.values()), list(labelled), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def _ticks(groups: Sequence[Group]) -> Mapping[float, str]:
    """Return the label of each place on the axis; no epsilon is one step right of the largest."""
    finite = sorted({group.epsilon for group in groups if group.epsilon is not None and math.isfinite(group.epsilon)})
    return {**{epsilon: f"{epsilon:g}" for epsilon in finite}, 2 * finite[-1] if finite else 1.0: NO_EPSILON}


def _looks(groups: Sequence[Group]) -> Mapping[str, _Look]:
    """Return the look of each curve."""
    curves = {_curve(group): (_kind(group), group.labels.get(MECHANISM, "")) for group in groups}
    kinds, mechanisms = (list(dict.fromkeys(each)) for each in zip(*curves.values(), strict=True))
    last = max(place for place in _ticks(groups))
    return {
        curve: _Look(
            _COLOURS[kinds.index(kind) % len(_COLOURS)],
            _MARKERS[mechanisms.index(mechanism) % len(_MARKERS)],
            _ASIDE ** (number - (len(curves) - 1) / 2),
            last,
        )
        for number, (curve, (kind, mechanism)) in enumerate(curves.items())
    }


def _kind(group: Group) -> str:
    return ", ".join(label for axis, label in group.labels.items() if axis not in (EPSILON, MECHANISM))


def _curve(group: Group) -> str:
    return ", ".join(label for axis, label in group.labels.items() if axis != EPSILON) or "all"


def _panel(
    axes: "Axes", groups: Sequence[Group], name: str, looks: Mapping[str, _Look], ticks: Mapping[float, str]
) -> None:
    for curve, look in looks.items():
        own = [group for group in groups if _curve(group) == curve and group.mean(name) is not None]
        own.sort(key=look.place)
        if own:
            axes.errorbar(
                [look.place(group) for group in own],
                [group.mean(name) or 0.0 for group in own],
                [group.spread(name) for group in own],
                color=look.colour,
                marker=look.marker,
                markersize=5,
                capsize=2,
                linewidth=1,
                label=curve,
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_xlim(min(ticks) / 1.4, max(ticks) * 1.4)
    axes.set(xlabel="epsilon", title=_TITLES.get(name, name))
    axes.grid(axis="y", color="#e5e7eb")


def _utility(axes: "Axes", groups: Sequence[Group], score: str, looks: Mapping[str, _Look]) -> None:
    """Draw the untrained encoder and the Pareto frontiers."""
    untrained = [mean for group in groups if (mean := group.mean(UNTRAINED + score)) is not None]
    if untrained:
        axes.axhline(sum(untrained) / len(untrained), color=_GREY, linestyle="--", label="untrained encoder")
    best = [group for group, marked in zip(groups, frontier(groups, score), strict=True) if marked]
    xs, ys = [looks[_curve(group)].place(group) for group in best], [group.mean(score) or 0.0 for group in best]
    axes.scatter(
        xs, ys, s=130, facecolors="none", edgecolors="#111827", linewidths=1.3, label="Pareto frontier", zorder=3
    )
