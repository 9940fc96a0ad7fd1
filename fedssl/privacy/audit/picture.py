"""The picture of an audit: the curve of the attack where false positives are few, and how scores are spread."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fedssl.privacy.audit.recovery import Recovery
from fedssl.privacy.audit.run_audit import RunAudit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IN, _OUT = "#2563eb", "#9ca3af"
_COLOURS = {"candidate": _IN, "independent": "#dc2626", "shared": "#059669", "external": _OUT}
_BINS = 40


def picture(audit: RunAudit) -> "Figure":
    """Return the curves of all attacks, the scores of the first, and SSLMem where the run had a twin."""
    from matplotlib.figure import Figure

    number = 3 if audit.memorisation else 2
    figure = Figure(figsize=(3.6 * number, 3.4), layout="constrained")
    panels = [figure.add_subplot(1, number, place + 1) for place in range(number)]
    _curves(panels[0], audit)
    name, scores = next(iter(audit.scores.items()))
    groups = {"in": (scores[audit.included], _IN), "out": (scores[~audit.included], _OUT)}
    bins = np.histogram_bin_edges(scores, _BINS)
    look: dict[str, Any] = {"density": True, "histtype": "stepfilled", "alpha": 0.5}
    for label, (own, colour) in groups.items():
        panels[1].hist(own, bins=bins.tolist(), color=colour, label=label, **look)
    panels[1].set(title=f"{name} of canaries", xlabel="score", yticks=[])
    if audit.memorisation:
        for group, memorised in audit.memorisation.items():
            share = np.arange(1, len(memorised.raw) + 1) / len(memorised.raw)
            panels[2].plot(np.sort(memorised.raw), share, color=_COLOURS[group], label=group)
        panels[2].axvline(0, color="#d1d5db", linewidth=0.8)
        panels[2].set(title="SSLMem", xlabel="score", ylabel="share of examples below")
    for axes in panels:
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def recovered_picture(recovery: Recovery) -> "Figure":
    """Return the originals, and below them what came back from each gradient."""
    from matplotlib.figure import Figure

    rows = {"original": recovery.originals} | {
        f"{how}\n{each.psnr:.1f} dB": each.images for how, each in recovery.found.items()
    }
    number = len(recovery.originals)
    figure = Figure(figsize=(1.4 * number + 1.2, 1.5 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), number, squeeze=False)
    for row, (label, images) in zip(panels, rows.items(), strict=True):
        row[0].set_ylabel(label, fontsize=8)
        for axes, image in zip(row, images, strict=True):
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    return figure


def _curves(axes: "Axes", audit: RunAudit) -> None:
    smallest = 1.0
    for name, each in audit.attacks.items():
        false_alarms, hits = each.rates
        smallest = min(smallest, false_alarms[false_alarms > 0].min(), hits[hits > 0].min())
        axes.step(false_alarms, hits, where="post", label=f"{name}, AUC {each.auc:.3f}")
    axes.plot([smallest, 1], [smallest, 1], color=_OUT, linestyle="--", linewidth=0.8, label="chance")
    axes.set(title="membership", xlabel="false-positive rate", ylabel="true-positive rate")
    axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1.05))
