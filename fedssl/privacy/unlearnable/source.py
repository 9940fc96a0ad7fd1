"""What can be protected: a folder of images, a folder of videos, or a packed file."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.data.image_files import Size
from fedssl.data.packed_file import read_packed, write_packed
from fedssl.errors import DataError
from fedssl.privacy.unlearnable.noise import Noise
from fedssl.privacy.unlearnable.protector import Say

NO_LABEL = -1


class Source(ABC):
    """Examples in one order.

    Attributes:
        labels: `[n]` int64, -1 where there is none.
        classes: Class names; none of a flat folder.
        size: Height and width that most examples have.
        identity: Tells one source from another.
    """

    labels: NDArray[np.int64]
    classes: Sequence[str]
    size: Size
    identity: str

    @abstractmethod
    def images(self, size: Size, say: Say) -> NDArray[np.uint8]:
        """Return all examples in one size `[n, height, width, channels]`; of a video its middle frame.

        Raises:
            DataError: One cannot be read.
        """

    @abstractmethod
    def pair(self, example: int, noise: Noise) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return one image or one frame `[height, width, channels]` as it is and as it is protected."""

    @abstractmethod
    def protect(self, noise: Noise, out: Path, say: Say) -> None:
        """Write what is missing of the protected examples, each file whole or not at all.

        Raises:
            DataError: One cannot be read.
            OSError: One cannot be written.
        """


class PackedSource(Source):
    """A packed file, which becomes `packed.npz`.

    Args:
        path: The file.

    Raises:
        DataError: It is no packed file, or holds images of several sizes.
    """

    def __init__(self, path: Path) -> None:
        self._packed = read_packed(path)
        self.labels, self.classes = self._packed.labels, self._packed.classes
        encoded = isinstance(self._packed.images, list)
        everything = np.arange(len(self.labels))
        self._pixels = self._packed.pixels(everything, 3 if encoded else np.shape(self._packed.images)[3], None)
        self.size = (self._pixels.shape[1], self._pixels.shape[2])
        self.identity = f"{path.name} {path.stat().st_size}"

    def images(self, size: Size, say: Say) -> NDArray[np.uint8]:
        """Return all images in one size."""
        return self._packed.pixels(np.arange(len(self.labels)), self._pixels.shape[3], size)

    def pair(self, example: int, noise: Noise) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return an image as it is and as it is protected."""
        image = self._pixels[example]
        return image, noise.apply(image[None], example)[0]

    def protect(self, noise: Noise, out: Path, say: Say) -> None:
        """Write the packed file of all protected images."""
        if (target := out / "packed.npz").exists():
            return
        changed = np.empty_like(self._pixels)
        for example in range(len(changed)):
            changed[example] = self.pair(example, noise)[1]
            say("images", example + 1, len(changed))
        write_packed(target, changed, self.labels, self.classes, self._packed.owners)


def most_common(sizes: Sequence[Size]) -> Size:
    """Return the size that most have, of several the largest."""
    counts = Counter(sizes)
    return max(counts, key=lambda size: (counts[size], size))


def open_source(path: Path) -> Source:
    """Return what is at a path.

    Raises:
        DataError: There is nothing that can be protected.
    """
    from fedssl.privacy.unlearnable.folder import ImageFolder, VideoFolder, holds_videos

    if path.is_dir():
        return VideoFolder(path) if holds_videos(path) else ImageFolder(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    return PackedSource(path)
