"""The picture of test videos and the training videos nearest to them, by the trained and by the untrained encoder."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedssl.evaluation.neighbours import NEAREST, Answer, Shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG, INK, GREY = "#0072b2", "#d55e00", "#111827", "#6b7280"  # blue and vermilion of Okabe and Ito
# everything below is in inches, but for the sizes of letters in points
STRIP, GAP, MARGIN, NAMES = 1.7, 0.16, 0.12, 1.05
HEADER, LABEL, LINE_GAP, BLOCK_GAP = 0.62, 0.22, 0.1, 0.24
LEAST_HEIGHT, MOST_HEIGHT = 0.3, 1.3
LETTERS = 10


def neighbours_plot(answers: Sequence[Answer]) -> bytes:
    """Return a PNG: each test video, its nearest training videos by the trained encoder, and below by the untrained.

    A video of the query's class has a blue frame and a check mark, another one a dashed orange frame and a cross.

    Raises:
        ValueError: There is no answer.
    """
    if not answers:
        raise ValueError("answers must have at least 1 test video, got 0")
    from matplotlib.figure import Figure

    frames, rows, columns, _ = answers[0].query.stills.shape
    height = float(np.clip(STRIP * rows / (frames * columns), LEAST_HEIGHT, MOST_HEIGHT))
    line = LABEL + height + LINE_GAP
    block = 2 * line + BLOCK_GAP
    first = MARGIN + STRIP + GAP + NAMES
    figure = Figure(figsize=(first + NEAREST * (STRIP + GAP) - GAP + MARGIN, HEADER + len(answers) * block))
    _header(figure, first)
    for number, answer in enumerate(answers):
        top = HEADER + number * block
        _rule(figure, top - BLOCK_GAP / 2)
        _video(figure, answer.query, (MARGIN, top + line / 2), height, INK, "")
        for encoder, found in (("trained", answer.trained), ("untrained", answer.untrained)):
            right = [video.label == answer.query.label for video in found]
            middle = top + LABEL + height / 2
            _write(
                figure, first - NAMES, middle - 0.09, encoder, INK, weight="bold" if encoder == "trained" else "normal"
            )
            _write(figure, first - NAMES, middle + 0.11, f"{sum(right)} of {len(right)}", GREY)
            for place, (video, same) in enumerate(zip(found, right, strict=True)):
                corner = (first + place * (STRIP + GAP), top)
                _video(figure, video, corner, height, RIGHT if same else WRONG, "✓ " if same else "✗ ")
            top += line
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def _header(figure: "Figure", first: float) -> None:
    _write(figure, MARGIN, 0.25, "test video", INK, weight="bold")
    _write(figure, first, 0.25, "training videos, nearest first", INK, weight="bold")
    last = first + NEAREST * (STRIP + GAP) - GAP
    _write(figure, last, 0.25, "✗ another class", WRONG, ha="right")
    _write(figure, last - STRIP, 0.25, "✓ the same class", RIGHT, ha="right")


def _video(figure: "Figure", video: Shown, corner: tuple[float, float], height: float, colour: str, mark: str) -> None:
    """Draw a video with its class above, its left upper corner at `corner`, from the left and from the top."""
    left, top = corner
    _write(figure, left, top + LABEL / 2, _fitted(mark + video.label), colour)
    width, tall = figure.get_size_inches()
    axes = figure.add_axes((left / width, 1 - (top + LABEL + height) / tall, STRIP / width, height / tall))
    strip = _strip(video.stills)
    axes.imshow(strip.squeeze(axis=-1) if strip.shape[-1] == 1 else strip, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=colour, linewidth=2, linestyle="--" if colour == WRONG else "-")


def _strip(stills: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return stills side by side, `[height, width, channels]`, with white between them."""
    _, height, width, channels = stills.shape
    white = np.full((height, max(1, width // 32), channels), 255, np.uint8)
    pieces = [piece for still in stills for piece in (white, still)]
    return np.concatenate(pieces[1:], axis=1)


def _rule(figure: "Figure", down: float) -> None:
    from matplotlib.lines import Line2D

    width, tall = figure.get_size_inches()
    places = [MARGIN / width, 1 - MARGIN / width], [1 - down / tall] * 2
    figure.add_artist(Line2D(*places, color="#d1d5db", linewidth=0.8))


def _write(figure: "Figure", left: float, down: float, text: str, colour: str, **look: Any) -> None:  # noqa: ANN401
    width, tall = figure.get_size_inches()
    place = left / width, 1 - down / tall
    figure.text(*place, text, color=colour, fontsize=LETTERS, va="center", parse_math=False, **look)


def _fitted(text: str) -> str:
    """Return `text`, shortened to the width of a video."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    letters, shown = FontProperties(size=LETTERS), text
    while text_to_path.get_text_width_height_descent(shown, letters, ismath=False)[0] > 72 * STRIP:
        text = text[:-1]
        shown = f"{text.rstrip()}…"
    return shown
