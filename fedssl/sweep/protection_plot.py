"""What protection comes to against the share of clients that are protected."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedssl.sweep.curves import GREY, Look, add_legend, draw_curve, looks_of
from fedssl.sweep.protection_table import (
    FRACTION,
    FREE_RIDE,
    GAP,
    OTHERS_LOSE,
    OWNERS_LOSE,
    PRESENCE,
    PROTECTION,
    fraction_of,
)
from fedssl.sweep.table import Group

_PANELS = {
    GAP: "protection gap",
    OWNERS_LOSE: "loss on protected images",
    OTHERS_LOSE: "loss on open images",
    FREE_RIDE: "free-rider gain",
}
_ASIDE = 0.006


def save_plot(path: Path, groups: Sequence[Group], scores: Sequence[str]) -> bool:
    """Draw a row of panels a score: the gap, what either side loses, and the free-rider gain.

    A colour is a kind of run, a marker a kind of protection, a bar the standard deviation over seeds.

    Returns:
        Whether there was anything to draw; nothing is written where there was not.
    """
    drawn = [group for group in groups if any(group.mean(f"{name} {scores[0]}") is not None for name in _PANELS)]
    if not drawn:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 3.8 * len(_PANELS), 3.4 * len(scores)), layout="constrained")
    looks = looks_of({_curve(group): (_kind(group), group.labels.get(PROTECTION, "")) for group in drawn})
    for row, score in enumerate(scores):
        for column, (name, title) in enumerate(_PANELS.items()):
            axes = figure.add_subplot(len(scores), len(_PANELS), row * len(_PANELS) + column + 1)
            for curve, look in looks.items():
                own = [group for group in drawn if _curve(group) == curve]
                draw_curve(axes, own, f"{name} {score}", look, partial(_place, look=look), curve)
            axes.axhline(0.0, color=GREY, linestyle="--")
            axes.set(title=f"{title}, {score}", xlabel="share of clients that are protected", xlim=(-0.05, 1.05))
            axes.title.set_fontsize(10)
            axes.grid(axis="y", color="#e5e7eb")
    add_legend(figure)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def _place(group: Group, look: Look) -> float:
    return fraction_of(group) + _ASIDE * look.aside


def _kind(group: Group) -> str:
    apart = (FRACTION, PRESENCE, PROTECTION)
    return ", ".join(label for axis, label in group.labels.items() if axis not in apart)


def _curve(group: Group) -> str:
    return ", ".join(label for label in (_kind(group), group.labels.get(PROTECTION, "")) if label) or "all"
