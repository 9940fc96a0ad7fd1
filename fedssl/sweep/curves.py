"""What the pictures of all sweeps share: a curve a kind of point, with bars over seeds, and one legend."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedssl.sweep.table import Group

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#9ca3af"
_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#db2777", "#4b5563")
_MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, slots=True)
class Look:
    """How a curve is drawn.

    Attributes:
        colour: Of lines, markers and bars.
        marker: Of points.
        aside: Its place among the curves, with 0 in the middle: points are a little aside, else bars hide each other.
    """

    colour: str
    marker: str
    aside: float


def looks_of(curves: Mapping[str, tuple[str, str]]) -> dict[str, Look]:
    """Return the look of each curve, by what its colour and its marker stand for."""
    kinds, marks = (list(dict.fromkeys(each)) for each in zip(*curves.values(), strict=True))
    return {
        curve: Look(
            _COLOURS[kinds.index(kind) % len(_COLOURS)],
            _MARKERS[marks.index(mark) % len(_MARKERS)],
            number - (len(curves) - 1) / 2,
        )
        for number, (curve, (kind, mark)) in enumerate(curves.items())
    }


def draw_curve(
    axes: "Axes", groups: Sequence[Group], name: str, look: Look, place: Callable[[Group], float], label: str
) -> None:
    """Draw the mean and the standard deviation of a number over the groups that have it, in the order of their place.

    Args:
        axes: Drawn on.
        groups: Points of the curve.
        name: Of the number.
        look: Of the curve.
        place: Returns where a group is on the axis.
        label: In the legend.
    """
    own = sorted((group for group in groups if group.mean(name) is not None), key=place)
    if own:
        axes.errorbar(
            [place(group) for group in own],
            [group.mean(name) or 0.0 for group in own],
            [group.spread(name) for group in own],
            color=look.colour,
            marker=look.marker,
            markersize=5,
            capsize=2,
            linewidth=1,
            label=label,
        )


def add_legend(figure: "Figure", title: str | None = None) -> None:
    """Add one legend at the right for all that has a label; of equal labels the first."""
    labelled: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    figure.legend(
        list(labelled.values()), list(labelled), loc="outside right center", fontsize=8, title=title, title_fontsize=8
    )
