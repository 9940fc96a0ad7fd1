"""The image datasets that torchvision fetches: CIFAR-10 and -100, SVHN, STL-10, Fashion-MNIST and MNIST."""

import socket
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.arrays import ArrayDataset
from fedssl.data.dataset import Splits
from fedssl.data.image_files import convert
from fedssl.data.split import check_channels
from fedssl.data.subset import balanced
from fedssl.errors import DataError
from fedssl.seeding import generator

SILENCE_SECONDS = 30.0
"""A download fails when nothing comes for this long."""

_ARCHIVES = (".gz", ".tgz", ".tar")


@dataclass(frozen=True, slots=True)
class Source:
    """How torchvision calls a dataset.

    Attributes:
        title: Its name.
        constructor: Name of the class in `torchvision.datasets`.
        parts: Whether the constructor takes `train` or `split`.
        files: What lies in the root folder, as an error names it.
    """

    title: str
    constructor: str
    parts: Literal["train", "split"]
    files: str


SOURCES = {
    "cifar10": Source("CIFAR-10", "CIFAR10", "train", "cifar-10-batches-py"),
    "cifar100": Source("CIFAR-100", "CIFAR100", "train", "cifar-100-python"),
    "svhn": Source("SVHN", "SVHN", "split", "train_32x32.mat and test_32x32.mat"),
    "stl10": Source("STL-10", "STL10", "split", "stl10_binary"),
    "fashion_mnist": Source("Fashion-MNIST", "FashionMNIST", "train", "FashionMNIST/raw"),
    "mnist": Source("MNIST", "MNIST", "train", "MNIST/raw"),
}


def torchvision_images(
    name: Literal["cifar10", "cifar100", "svhn", "stl10", "fashion_mnist", "mnist"],
    root: str,
    num_train: int | None = None,
    num_test: int | None = None,
    channels: int = 3,
    seed: int = 0,
) -> Splits:
    """Return the official training and test part of a dataset as clips of one frame; owners are "".

    Of STL-10 these are the 5,000 and 8,000 labelled images: its 100,000 others belong to no class, and every example
    here has one.

    Args:
        name: Which dataset.
        root: Folder in which torchvision's files lie; what is missing is downloaded into it.
        num_train: Training images kept, the same number of each class; None keeps all.
        num_test: Test images kept, the same number of each class; None keeps all.
        channels: 3 for RGB, 1 for grey.
        seed: Seed of the choice of images.

    Returns:
        The training and the test examples.

    Raises:
        DataError: The files are not there and cannot be downloaded.
        ValueError: An argument is out of range.
    """
    at_least(1, num_train=num_train, num_test=num_test)
    check_channels(channels)

    def part(train: bool, limit: int | None) -> ArrayDataset:
        images, labels, classes = _load(SOURCES[name], Path(root).expanduser(), train)
        key = "num_train" if train else "num_test"
        chosen = balanced(labels, limit, key, generator(seed, name, key))
        examples = convert(images[chosen], channels, None)[:, None]
        return ArrayDataset(labels[chosen], classes, ("",) * len(chosen), examples)

    return Splits(part(True, num_train), part(False, num_test))


def _load(source: Source, root: Path, train: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Return images `[num_images, height, width, channels]`, labels and names of the classes."""
    opened = _open(source, root, train)
    labels = opened.targets if hasattr(opened, "targets") else opened.labels
    classes = opened.classes if hasattr(opened, "classes") else [str(digit) for digit in range(10)]
    images = np.asarray(opened.data)
    if images.ndim == 3:
        images = images[..., None]
    elif images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    return images, np.asarray(labels, dtype=np.int64), tuple(classes)


def _open(source: Source, root: Path, train: bool) -> Any:  # noqa: ANN401 - torchvision has no types
    from torchvision import datasets

    part = {"train": train} if source.parts == "train" else {"split": "train" if train else "test"}
    constructor = getattr(datasets, source.constructor)
    try:
        return constructor(root, **part)
    except (RuntimeError, OSError, ValueError, AssertionError):  # its answers to files that are missing or damaged
        pass
    try:
        with _silence_limited(), _arriving(root) as folder:
            return constructor(folder, download=True, **part)
    except (OSError, RuntimeError, HTTPException, EOFError, tarfile.TarError) as error:
        missing = f"{source.title} is not there or damaged ({root / source.files})"
        raise DataError(f"{missing}, and cannot be downloaded: {_reason(error)}") from error


@contextmanager
def _arriving(root: Path) -> Iterator[str]:
    """Give a folder to download into; its files move to `root` once all are there, and never before."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".arriving-", dir=root) as name:
        yield name
        folder = Path(name)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix not in _ARCHIVES:
                target = root / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)


@contextmanager
def _silence_limited() -> Iterator[None]:
    """Let connections fail that say nothing for a while; torchvision takes no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    answered = isinstance(error, HTTPError) or not (
        isinstance(error, URLError | TimeoutError | ConnectionError) or "urlopen error" in text
    )
    return text if answered else f"the network did not answer ({text})"
