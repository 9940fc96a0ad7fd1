"""Curves of a run and the partition, as inline SVG that is the same for the same numbers."""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedssl.report.records import RoundRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MAX_BAR_CLIENTS = 40
MAX_BAR_CLASSES = 20
TRAINED = "#2563eb"
UNTRAINED = "#9ca3af"
HATCH = "//////"
Colour = str | tuple[float, float, float, float]
Points = Sequence[tuple[int, float]]


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


def pseudo_label_curves(records: Sequence[RoundRecord], classes: Sequence[str]) -> str:
    """Return how many pseudo-labels are given over the rounds, and how many of them are right, in all and by class.

    Args:
        records: The rounds in order; "pseudo-label coverage" and "pseudo-label accuracy" of their metrics are drawn,
            and those of class 3, "pseudo-label coverage.3" and "pseudo-label accuracy.3", where they are there.
        classes: Name of each class.

    Returns:
        A panel for each of the two, named by class up to 20 classes; "" when no round has any of them.
    """
    named = len(classes) <= MAX_BAR_CLASSES
    looks = {
        f".{index}": (name if named else "one class", colour if named else UNTRAINED, 0.9)
        for index, (name, colour) in enumerate(zip(classes, _palette(len(classes)), strict=True))
    }
    looks[""] = ("all classes", "#111827", 2.4)
    titles = ("pseudo-label coverage", "pseudo-label accuracy")
    panels = [(title, found) for title in titles if (found := _metrics(records, [title + end for end in looks]))]
    if not panels:
        return ""
    with _style("pseudo-labels"):
        figure, all_axes = _panels(len(panels))
        figure.set_figwidth(8.5)
        shown = {}
        for axes, (title, found) in zip(all_axes, panels, strict=True):
            for key, points in found.items():
                label, colour, width = looks[key.removeprefix(title)]
                shown[label] = _line(axes, points, colour, width)
            _rounds(axes, found.values())
            axes.set(title=title, ylim=(-0.03, 1.03))
        handles, columns = list(shown.values()), 1 if len(shown) <= 11 else 2
        figure.legend(handles, list(shown), loc="outside right upper", fontsize=7, ncols=columns)
        return _svg(figure)


def angle_curves(records: Sequence[RoundRecord]) -> str:
    """Return the metrics "gradient angle" and "update angle" over the rounds, in degrees; "" when no round has one."""
    found = _metrics(records, ("gradient angle", "update angle"))
    if not found:
        return ""
    with _style("angles"):
        figure, (axes,) = _panels(1)
        lines = [_line(axes, points, colour) for points, colour in zip(found.values(), _palette(2), strict=False)]
        axes.axhline(90, color=UNTRAINED, linestyle="--")
        _rounds(axes, found.values())
        axes.set(title="angles", ylabel="degrees")
        axes.legend(lines, list(found), loc="best")
        return _svg(figure)


def partition_plot(
    counts: NDArray[np.integer],
    classes: Sequence[str],
    labelled: NDArray[np.integer] | None = None,
    server: NDArray[np.integer] | None = None,
) -> str:
    """Return how many examples of each class each client holds, and how many labels are known.

    Stacked bars up to 40 clients and 20 classes, in which unlabelled examples are hatched; a heatmap beyond, with one
    of the labelled examples beside it.

    Args:
        counts: `[clients, classes]` number of examples.
        classes: Name of each class.
        labelled: `[clients, classes]` how many of them have a label that the client knows; None for all.
        server: `[classes]` labelled examples that the server holds, for a row of its own; None for no such row.

    Raises:
        ValueError: A shape is not this, or more examples are labelled than there are.
    """
    if counts.ndim != 2 or counts.shape[1] != len(classes):
        raise ValueError(f"counts must be [clients, {len(classes)}], got {list(counts.shape)}")
    known = counts if labelled is None else labelled
    if known.shape != counts.shape or (known > counts).any():
        raise ValueError(f"labelled must be {list(counts.shape)} and at most counts, got {list(known.shape)}")
    if counts.size == 0:
        return ""
    few = counts.shape[0] <= MAX_BAR_CLIENTS and counts.shape[1] <= MAX_BAR_CLASSES
    rows = [str(client) for client in range(len(counts))]
    if server is not None:
        counts, known, rows = np.vstack([counts, server]), np.vstack([known, server]), [*rows, "server"]
    with _style("partition"):
        return _svg(_bars(counts, known, rows, classes) if few else _heatmaps(counts, known, rows, classes))


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
        "hatch.linewidth": 0.5,
    }
    return matplotlib.rc_context(settings)


def _panels(number: int) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    columns = min(number, 3)
    rows = -(-number // columns)
    figure = Figure(figsize=(max(3.0 * columns, 5.0), 2.5 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(number)]


def _metrics(records: Sequence[RoundRecord], names: Iterable[str]) -> dict[str, Points]:
    """Return round and value of every metric that some round has."""
    found = {
        name: [(record.round, record.metrics[name]) for record in records if name in record.metrics] for name in names
    }
    return {name: points for name, points in found.items() if points}


def _curve(axes: "Axes", points: Points) -> None:
    _line(axes, points, TRAINED)
    _rounds(axes, [points])


def _line(axes: "Axes", points: Points, colour: Colour, width: float = 1.5) -> "Line2D":
    marker = "o" if len(points) <= 30 else None
    (line,) = axes.plot(*zip(*points, strict=True), color=colour, linewidth=width, marker=marker, markersize=2 * width)
    return line


def _rounds(axes: "Axes", curves: Iterable[Points]) -> None:
    """Let the horizontal axis count the rounds of all `curves`."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.set_xlim(0, 1.03 * max(points[-1][0] for points in curves))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y", color="#e5e7eb")


def _palette(number: int) -> list[tuple[float, float, float, float]]:
    """Return a colour for each of `number` things; 20 are different."""
    import matplotlib

    colours = matplotlib.colormaps["tab10" if number <= 10 else "tab20"]
    return [colours(index % 20) for index in range(number)]


def _bars(
    counts: NDArray[np.integer], known: NDArray[np.integer], rows: Sequence[str], classes: Sequence[str]
) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    places = np.arange(len(counts))
    figure = Figure(figsize=(8.5, max(1.4 + 0.2 * len(counts), 0.6 + 0.2 * len(classes))), layout="constrained")
    axes = figure.add_subplot()
    starts = np.cumsum(counts, axis=1) - counts
    unknown = counts - known
    handles: list[Any] = []
    for index, colour in enumerate(_palette(len(classes))):
        handles.append(axes.barh(places, known[:, index], left=starts[:, index], color=colour))
        some = np.flatnonzero(unknown[:, index])
        left, light = (starts + known)[some, index], [0.75 + 0.25 * part for part in colour[:3]]
        axes.barh(some, unknown[some, index], left=left, color=light, edgecolor=colour, linewidth=0, hatch=HATCH)
    axes.set_yticks(places, rows)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set(xlabel="examples", ylabel="client")
    names = list(classes)
    if unknown.any():
        handles.append(Patch(facecolor="#e5e7eb", edgecolor="#6b7280", linewidth=0, hatch=HATCH))
        names.append("unlabelled")
    # Handles are named here because matplotlib leaves out of its own legend every name that begins with "_".
    axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure


def _heatmaps(
    counts: NDArray[np.integer], known: NDArray[np.integer], rows: Sequence[str], classes: Sequence[str]
) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    panels = {"examples": counts} if (known == counts).all() else {"examples": counts, "labelled examples": known}
    for number, (label, values) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        image = axes.imshow(
            values, aspect="auto", interpolation="none", cmap="Blues", vmin=0, vmax=max(1, values.max())
        )
        if len(classes) <= MAX_BAR_CLASSES:
            axes.set_xticks(range(len(classes)), list(classes), rotation=45, ha="right")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if rows[-1] == "server":
            last = len(rows) - 1
            ticks = [int(tick) for tick in axes.get_yticks() if 0 <= tick < 0.96 * last]
            axes.set_yticks([*ticks, last], [rows[tick] for tick in [*ticks, last]])
        axes.set(xlabel="class", ylabel="client")
        figure.colorbar(image, ax=axes, label=label)
    return figure


def _svg(figure: "Figure") -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
