"""What can be told from the pixels of every example without a network: small pictures and measures of style."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedssl.data.dataset import Dataset

THUMBNAIL = 8
"""Height and width of the small pictures."""

STATISTICS = ("brightness", "contrast", "colour", "sharpness")
"""Names of the measures of style."""

_BATCH_BYTES = 8 * 2**20
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def thumbnails(dataset: Dataset) -> NDArray[np.float32]:
    """Return every example's mean frame in small, each value the mean of the pixels that it covers.

    Returns:
        `[num_examples, THUMBNAIL * THUMBNAIL * channels]` float32 in 0 to 1.
    """
    return np.concatenate([_shrink(clips) for clips in _batches(dataset)])


def styles(dataset: Dataset) -> dict[str, NDArray[np.float64]]:
    """Return the measures of style of every example, over all pixels of all its frames.

    Brightness is the mean luma (ITU-R BT.601) and contrast its standard deviation. Colour is the mean of red - green
    and of yellow - blue. Sharpness is the mean difference between neighbouring pixels relative to the contrast, so
    that the two measure different things.

    Returns:
        `[num_examples, 1]` float64 for each of `STATISTICS`; `[num_examples, 2]` for colour.
    """
    measured = [_measure(clips) for clips in _batches(dataset)]
    return {name: np.concatenate([part[name] for part in measured]).astype(np.float64) for name in STATISTICS}


def _batches(dataset: Dataset) -> Iterator[NDArray[np.float32]]:
    """Yield all examples in order, `[n, frames, height, width, channels]` in 0 to 1; those of a batch have one size."""
    batch: list[NDArray[np.uint8]] = []
    for index in range(len(dataset)):
        clip = dataset.read(index)
        if batch and (clip.shape != batch[0].shape or (len(batch) + 1) * clip.nbytes > _BATCH_BYTES):
            yield _unit(batch)
            batch = []
        batch.append(clip)
    if batch:
        yield _unit(batch)


def _unit(batch: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return np.stack(batch).astype(np.float32) / np.float32(255)


def _shrink(clips: NDArray[np.float32]) -> NDArray[np.float32]:
    images = clips.mean(axis=1)
    number, height, width, channels = images.shape
    rows = np.matmul(_cover(height), images.reshape(number, height, width * channels))
    columns = rows.reshape(number * THUMBNAIL, width, channels)
    small: NDArray[np.float32] = np.matmul(_cover(width), columns).reshape(number, -1)
    return small


def _cover(size: int) -> NDArray[np.float32]:
    """Return the weights `[THUMBNAIL, size]` of the pixels that each value of a thumbnail covers; rows add up to 1."""
    edges = np.arange(THUMBNAIL + 1) * (size / THUMBNAIL)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: NDArray[np.float32] = (np.maximum(overlap, 0) * (THUMBNAIL / size)).astype(np.float32)
    return weights


def _measure(clips: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    every = (1, 2, 3)
    luma = clips[..., 0] if clips.shape[-1] == 1 else np.einsum("nfhwc,c->nfhw", clips, _LUMA)
    means = clips.mean(axis=every)
    red, green, blue = (means[:, channel % clips.shape[-1]] for channel in range(3))
    contrast = luma.std(axis=every)
    steps = sum(np.abs(np.diff(luma, axis=axis)).sum(axis=every) for axis in (2, 3)) / luma[0].size
    return {
        "brightness": luma.mean(axis=every)[:, None],
        "contrast": contrast[:, None],
        "colour": np.stack([red - green, (red + green) / 2 - blue], axis=1),
        "sharpness": (steps / (contrast + np.float32(1 / 255)))[:, None],
    }
