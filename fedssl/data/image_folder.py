"""A folder of image files, split into training and test."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.dataset import Splits
from fedssl.data.file_dataset import Layout, open_folder
from fedssl.data.image_files import IMAGES, decode
from fedssl.data.split import check_channels
from fedssl.seeding import generator


def image_folder(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
    root: str,
    test_owners: Sequence[str] = (),
    test_fraction: float = 0.2,
    height: int = 64,
    width: int = 64,
    channels: int = 3,
    group: str | None = None,
    classes: Sequence[str] | None = None,
    skip_unreadable: bool = False,
    seed: int = 0,
) -> Splits:
    """Return the images of a folder, `root/<class>/<file>` or what `root/metadata.csv` lists, as clips of one frame.

    Args:
        root: The folder.
        test_owners: The owners to hold out; needs `group`.
        test_fraction: Without `test_owners`, the part that is held out: of the owners if there is a `group`,
            else of each class.
        height: Height that images are resized to, in pixels.
        width: Width that images are resized to, in pixels.
        channels: 3 for RGB, 1 for grey.
        group: The column of `metadata.csv` that names the owner of each image.
        classes: Names of the classes in the order of their numbers, the same on every device; None numbers those found.
        skip_unreadable: Decode every file now, and leave out those that fail with a warning.
        seed: Seed of the split.

    Returns:
        The training and the test images; files are decoded when first read.

    Raises:
        DataError: The folder is missing, has no images, or lists a file that is not there.
        ValueError: An argument is out of range.
    """
    at_least(1, height=height, width=width)
    check_channels(channels)
    layout = Layout(test_owners, test_fraction, group, classes)
    read = partial(_read, channels=channels, size=(height, width))
    return open_folder(Path(root), IMAGES, read, layout, skip_unreadable, generator(seed, "image_folder", "split"))


def _read(path: Path, channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    return decode(path, str(path), channels, size)[None]
