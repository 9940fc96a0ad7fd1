"""Images of packed files, split into training and test."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.arrays import ArrayDataset
from fedssl.data.dataset import Splits
from fedssl.data.packed_file import PackedImages, read_packed
from fedssl.data.split import by_label, by_owner, check_channels, check_fraction
from fedssl.data.subset import balanced
from fedssl.errors import DataError
from fedssl.seeding import generator


def packed(
    root: str,
    test_fraction: float = 0.2,
    num_train: int | None = None,
    num_test: int | None = None,
    channels: int = 3,
    size: int | None = None,
    seed: int = 0,
) -> Splits:
    """Return the images of a packed file, or of the files train.npz and test.npz of a folder, as clips of one frame.

    Args:
        root: A file as `python -m fedssl.data.pack` writes it, or a folder with train.npz and perhaps test.npz.
        test_fraction: Where there is no test.npz, the part that is held out: of the owners if there are several, else
            of each class.
        num_train: Training images kept, the same number of each class; None keeps all.
        num_test: Test images kept, the same number of each class; None keeps all.
        channels: 3 for RGB, 1 for grey.
        size: Height and width that images are resized to, in pixels; None keeps theirs.
        seed: Seed of the split and of the choice of images.

    Returns:
        The training and the test images, decoded.

    Raises:
        DataError: A file is missing, or holds something else.
        ValueError: An argument is out of range.
    """
    check_fraction(test_fraction)
    at_least(1, num_train=num_train, num_test=num_test, size=size)
    check_channels(channels)

    def build(source: PackedImages, part: NDArray[np.int64], limit: int | None, key: str) -> ArrayDataset:
        chosen = part[balanced(source.labels[part], limit, key, generator(seed, "packed", key))]
        pixels = source.pixels(chosen, channels, None if size is None else (size, size))
        owners = tuple(source.owners[index] for index in chosen)
        return ArrayDataset(source.labels[chosen], source.classes, owners, pixels[:, None])

    train_source, test_source, train, test = _parts(Path(root), test_fraction, seed)
    return Splits(build(train_source, train, num_train, "num_train"), build(test_source, test, num_test, "num_test"))


def _parts(
    root: Path, test_fraction: float, seed: int
) -> tuple[PackedImages, PackedImages, NDArray[np.int64], NDArray[np.int64]]:
    """Return the sources of training and test images, and which of their images these are."""
    source = read_packed(root / "train.npz" if root.is_dir() else root)
    test_file = root / "test.npz"
    if not test_file.is_file():
        train, test = _split(source, test_fraction, generator(seed, "packed", "split"))
        return source, source, train, test
    held_out = read_packed(test_file)
    if held_out.classes != source.classes:
        raise DataError(f"{test_file}: classes must be those of train.npz, got {', '.join(held_out.classes)}")
    return source, held_out, np.arange(len(source.labels)), np.arange(len(held_out.labels))


def _split(
    source: PackedImages, test_fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if len(set(source.owners)) > 1:
        return by_owner(source.owners, (), test_fraction, rng)
    return by_label(source.labels, test_fraction, rng)
