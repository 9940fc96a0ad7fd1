"""Scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the library."""

import numpy as np
from numpy.typing import NDArray

from fedssl.data.arrays import ArrayDataset
from fedssl.data.dataset import Splits
from fedssl.data.split import by_label, check_channels
from fedssl.seeding import generator


def load_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the digits as `[1797, 8, 8]` uint8 in 0 to 255 and what they show as `[1797]` int64."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)
    return images, np.asarray(bunch.target, dtype=np.int64)


def digits(test_fraction: float = 0.2, channels: int = 1, seed: int = 0) -> Splits:
    """Return the handwritten digits as clips of one frame, `[1, 8, 8, channels]`.

    They have no natural group, so every owner is "".

    Args:
        test_fraction: Part of each class that is held out, in (0, 1).
        channels: 1, or 3 for the same grey value three times.
        seed: Seed of the split.

    Returns:
        The training and the test examples.

    Raises:
        ValueError: An argument is out of range.
    """
    check_channels(channels)
    images, labels = load_images()
    examples = np.repeat(images[:, None, :, :, None], channels, axis=4)
    classes = tuple(str(digit) for digit in range(10))
    train, test = by_label(labels, test_fraction, generator(seed, "digits", "split"))

    def pick(indices: NDArray[np.int64]) -> ArrayDataset:
        return ArrayDataset(labels[indices], classes, ("",) * len(indices), examples[indices])

    return Splits(pick(train), pick(test))
