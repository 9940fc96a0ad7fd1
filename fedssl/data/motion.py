"""The motions of moving digits, as curves through the picture."""

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import one_of

MOTIONS = ("right", "left", "down", "up", "clockwise", "counterclockwise", "grow", "shrink")
"""The classes in order: each of the pairs is one motion and the same motion played backwards."""

RADIUS = 0.2
"""Radius of the circles, in picture sizes."""


def trajectory(motion: str, num_frames: int, speed: float, phase: float) -> NDArray[np.float64]:
    """Return where a digit is and how large, relative to the middle of its curve, at each frame.

    A motion and its opposite pass through the same places, so that only the order of the frames tells them apart.

    Args:
        motion: One of `MOTIONS`.
        num_frames: Number of frames, at least 2.
        speed: Distance travelled over the clip in picture sizes; circles make twice as many turns, and sizes
            change by a factor of exp(2 * speed).
        phase: Angle at the middle of a circle, in radians.

    Returns:
        `[num_frames, 3]`: x to the right and y downwards in picture sizes, and the factor of the size.

    Raises:
        ValueError: There is no such motion.
    """
    one_of(MOTIONS, motion=motion)
    kind, backwards = divmod(MOTIONS.index(motion), 2)
    along = np.linspace(-0.5, 0.5, num_frames) * speed * (-1 if backwards else 1)
    still, whole = np.zeros(num_frames), np.ones(num_frames)
    if kind == 2:
        angle = phase + 4 * np.pi * along
        return np.stack([RADIUS * np.cos(angle), RADIUS * np.sin(angle), whole], axis=1)
    if kind == 3:
        return np.stack([still, still, np.exp(2 * along)], axis=1)
    return np.stack([along, still, whole] if kind == 0 else [still, along, whole], axis=1)


def hat_weights(
    size: int, centres: NDArray[np.float64], scales: NDArray[np.float64], cells: int
) -> NDArray[np.float32]:
    """Return the weights that draw a row of `cells` values bilinearly on a row of `size` pixels.

    Args:
        size: Number of pixels.
        centres: `[frames]` pixel at which the middle of the cells comes to lie.
        scales: `[frames]` pixels a cell.
        cells: Number of values in the source.

    Returns:
        `[frames, size, cells]` float32; all zero where a pixel lies outside the source.
    """
    pixels = np.arange(size) - centres[:, None]
    where = pixels / scales[:, None] + (cells - 1) / 2
    weights = 1 - np.abs(where[:, :, None] - np.arange(cells))
    hats: NDArray[np.float32] = np.maximum(weights, 0).astype(np.float32)
    return hats


def draw_mask(image: NDArray[np.float32], size: int, curve: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return `image` drawn along a curve on an empty picture.

    Args:
        image: `[cells, cells]` float32.
        size: Height and width of the picture in pixels.
        curve: `[frames, 3]`: centre x, centre y and side length of the image, all in pixels.

    Returns:
        `[frames, size, size]` float32 in the range of `image`.
    """
    cells = len(image)
    across = hat_weights(size, curve[:, 0], curve[:, 2] / cells, cells)
    down = hat_weights(size, curve[:, 1], curve[:, 2] / cells, cells)
    rows: NDArray[np.float32] = np.matmul(down, image)
    mask: NDArray[np.float32] = np.matmul(rows, across.transpose(0, 2, 1))
    return mask
