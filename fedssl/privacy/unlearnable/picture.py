"""The picture of a protection: some examples as they are, their noise ten times as strong, and protected."""

from pathlib import Path

import numpy as np

from fedssl.privacy.unlearnable.noise import Noise
from fedssl.privacy.unlearnable.source import Source

PICTURE = "picture.png"

_SHOWN, _TIMES, _GREY = 8, 10, 128


def write_picture(out: Path, source: Source, noise: Noise) -> None:
    """Write `picture.png`: a column for each of up to eight examples; where nothing changes, noise is mid-grey."""
    from matplotlib.figure import Figure

    number = min(_SHOWN, len(noise.rows))
    figure = Figure(figsize=(1.2 * number + 0.3, 3.8), layout="constrained")
    panels = figure.subplots(3, number, squeeze=False)
    for column, example in enumerate(np.linspace(0, len(noise.rows) - 1, number).astype(int).tolist()):
        clean, protected = source.pair(example, noise)
        change = (protected.astype(int) - clean) * _TIMES + _GREY
        for axes, pixels in zip(panels[:, column], (clean, np.clip(change, 0, 255), protected), strict=True):
            axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
    for axes, label in zip(panels[:, 0], ("clean", f"noise x{_TIMES}", "protected"), strict=True):
        axes.set_ylabel(label)
    partial = out / f".{PICTURE}.partial"
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(out / PICTURE)
