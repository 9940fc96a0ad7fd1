"""Curves of a run and the partition, as inline SVG that is the same for the same numbers."""

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedssl.report.records import RoundRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BAR_CLIENTS = 40
MAX_BAR_CLASSES = 20
TRAINED = "#2563eb"
UNTRAINED = "#9ca3af"


def score_curves(records: Sequence[RoundRecord], untrained: Mapping[str, float]) -> str:
    """Return one panel a score over the rounds, the untrained encoder dashed; "" when no round has a score."""
    names = list(dict.fromkeys(name for record in records for name in record.scores))
    if not names:
        return ""
    with _style("scores"):
        figure, panels = _panels(len(names))
        for axes, name in zip(panels, names, strict=True):
            _curve(axes, [(record.round, record.scores[name]) for record in records if name in record.scores])
            axes.set_title(name)
            if name in untrained:
                axes.axhline(untrained[name], color=UNTRAINED, linestyle="--", label="untrained")
                axes.legend(loc="best")
        return _svg(figure)


def loss_curve(records: Sequence[RoundRecord]) -> str:
    """Return the clients' mean training loss over the rounds; "" when no round has a "loss"."""
    points = [(record.round, record.metrics["loss"]) for record in records if "loss" in record.metrics]
    if not points:
        return ""
    with _style("loss"):
        figure, (axes,) = _panels(1)
        _curve(axes, points)
        axes.set_title("training loss")
        return _svg(figure)


def partition_plot(counts: NDArray[np.integer], classes: Sequence[str]) -> str:
    """Return how many examples of each class each client holds.

    Stacked bars up to 40 clients and 20 classes, a heatmap beyond.

    Args:
        counts: `[clients, classes]` number of examples.
        classes: Name of each class.

    Raises:
        ValueError: If `counts` is not `[clients, len(classes)]`.
    """
    if counts.ndim != 2 or counts.shape[1] != len(classes):
        raise ValueError(f"counts must be [clients, {len(classes)}], got {list(counts.shape)}")
    if counts.size == 0:
        return ""
    with _style("partition"):
        few = counts.shape[0] <= MAX_BAR_CLIENTS and counts.shape[1] <= MAX_BAR_CLASSES
        return _svg(_bars(counts, classes) if few else _heatmap(counts, classes))


def _style(salt: str) -> AbstractContextManager[None]:
    """Return the settings of one plot; text stays text, and ids differ between the plots of a page."""
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.hashsalt": f"fedssl-{salt}",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#6b7280",
        "legend.frameon": False,
    }
    return matplotlib.rc_context(settings)


def _panels(number: int) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    columns = min(number, 3)
    rows = -(-number // columns)
    figure = Figure(figsize=(max(3.0 * columns, 5.0), 2.5 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(number)]


def _curve(axes: "Axes", points: Sequence[tuple[int, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    rounds, values = zip(*points, strict=True)
    axes.plot(rounds, values, color=TRAINED, marker="o" if len(points) <= 30 else None, markersize=3)
    axes.set_xlabel("round")
    axes.set_xlim(0, 1.03 * rounds[-1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y", color="#e5e7eb")


def _bars(counts: NDArray[np.integer], classes: Sequence[str]) -> "Figure":
    import matplotlib
    from matplotlib.figure import Figure

    clients = np.arange(len(counts))
    figure = Figure(figsize=(8.5, max(1.4 + 0.2 * len(counts), 0.6 + 0.2 * len(classes))), layout="constrained")
    axes = figure.add_subplot()
    palette = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    starts = np.cumsum(counts, axis=1) - counts
    for index in range(len(classes)):
        axes.barh(clients, counts[:, index], left=starts[:, index], color=palette(index))
    axes.set_yticks(clients)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set(xlabel="examples", ylabel="client")
    # Handles are named here because matplotlib leaves out of its own legend every name that begins with "_".
    axes.legend(list(axes.containers), list(classes), loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure


def _heatmap(counts: NDArray[np.integer], classes: Sequence[str]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(counts, aspect="auto", interpolation="none", cmap="Blues", vmin=0)
    if len(classes) <= MAX_BAR_CLASSES:
        axes.set_xticks(range(len(classes)), list(classes), rotation=45, ha="right")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="class", ylabel="client")
    figure.colorbar(image, ax=axes, label="examples")
    return figure


def _svg(figure: "Figure") -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
