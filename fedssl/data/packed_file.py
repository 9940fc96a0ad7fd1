"""Many images in one file: an npz archive, which NumPy alone can read; nothing in it is ever executed.

| key | dtype and shape | |
| --- | --- | --- |
| `images` | uint8 `[n, height, width]` or `[n, height, width, 1 or 3]` | the pixels, or instead of them: |
| `jpegs`, `offsets` | uint8 `[bytes]`, integers `[n + 1]` | image i is the file `jpegs[offsets[i]:offsets[i + 1]]` |
| `labels` | integers `[n]` | indices into `classes` |
| `classes` | text `[num_classes]` | names |
| `owners` | text `[n]`, need not be there | the person or the hospital that each image comes from |
"""

import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.data.image_files import Size, convert, decode
from fedssl.errors import DataError

KEYS = ("images", "jpegs", "offsets", "labels", "classes", "owners")

_READ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class PackedImages:
    """What a packed file holds.

    Attributes:
        path: The file.
        images: `[num_images, height, width, channels]` uint8, or a list of encoded images as uint8.
        labels: `[num_images]` int64, indices into `classes`.
        classes: Class names.
        owners: `[num_images]` owner names; "" where there is none.
    """

    path: Path
    images: NDArray[np.uint8] | list[NDArray[np.uint8]]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    owners: tuple[str, ...]

    def pixels(self, chosen: NDArray[np.int64], channels: int, size: Size | None) -> NDArray[np.uint8]:
        """Return some of the images.

        Args:
            chosen: `[n]` their indices.
            channels: 3 for RGB, 1 for grey.
            size: Height and width that they are resized to; None keeps theirs.

        Returns:
            `[n, height, width, channels]` uint8.

        Raises:
            DataError: One cannot be decoded, or they differ in size and `size` is None.
        """
        if not isinstance(self.images, list):
            return convert(self.images[chosen], channels, size)
        decoded: list[NDArray[np.uint8]] = []
        for index in chosen:
            name = f"{self.path}: image {index} of jpegs"
            decoded.append(decode(io.BytesIO(self.images[index].tobytes()), name, channels, size))
            if decoded[-1].shape != decoded[0].shape:
                sizes = " and ".join(f"{image.shape[0]}x{image.shape[1]}" for image in (decoded[-1], decoded[0]))
                raise DataError(f"{name}: images of several sizes ({sizes}) need size=N to become one")
        return np.stack(decoded)


def read_packed(path: Path) -> PackedImages:
    """Read a packed file; encoded images stay encoded.

    Raises:
        DataError: The file is not there, is no such archive, or a key is missing or wrong.
    """
    arrays = _arrays(path)
    for key in ("labels", "classes", "offsets" if "jpegs" in arrays else "images"):
        if key not in arrays:
            raise DataError(f"{path}: has no {key}" + (" and no jpegs" if key == "images" else ""))
    if "images" in arrays and "jpegs" in arrays:
        raise DataError(f"{path}: has both images and jpegs")
    images = _files(path, arrays) if "jpegs" in arrays else _pixels(path, arrays["images"])
    labels, classes = arrays["labels"], arrays["classes"]
    _require(path, "classes", classes, classes.dtype.kind == "U" and classes.ndim == 1 and classes.size > 0, "names")
    fits = labels.dtype.kind in "iu" and labels.shape == (len(images),)
    _require(path, "labels", labels, fits, f"integers [{len(images)}]")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"{path}: labels must be 0 to {len(classes) - 1}, got {labels.min()} to {labels.max()}")
    owners = arrays.get("owners", np.full(len(images), ""))
    fits = owners.dtype.kind == "U" and owners.shape == (len(images),)
    _require(path, "owners", owners, fits, f"names [{len(images)}]")
    return PackedImages(path, images, labels.astype(np.int64), tuple(classes.tolist()), tuple(owners.tolist()))


def write_packed(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[str], owners: Sequence[str]
) -> None:
    """Write a packed file of pixels, whole or not at all.

    Args:
        path: The file; one that is there is replaced.
        images: `[num_images, height, width, channels]` uint8.
        labels: `[num_images]` indices into `classes`.
        classes: Class names.
        owners: `[num_images]` owner names; if all are "", the file has no owners.
    """
    arrays: dict[str, Any] = {"images": images, "labels": labels, "classes": np.array(classes)}
    if any(owners):
        arrays["owners"] = np.array(owners)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        archive = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except _READ_ERRORS as error:
        raise DataError(f"{path}: is no npz archive, or a damaged one") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: is a single array, not an npz archive")
    arrays = {}
    with archive:
        for key in KEYS:
            if key in archive.files:
                try:
                    arrays[key] = archive[key]
                except _READ_ERRORS as error:
                    raise DataError(f"{path}: {key} cannot be read ({' '.join(str(error).split())})") from error
    return arrays


def _pixels(path: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
    channels = images.shape[3] if images.ndim == 4 else 1
    fits = images.dtype == np.uint8 and images.size > 0 and images.ndim in (3, 4) and channels in (1, 3)
    _require(path, "images", images, fits, "uint8 [n, height, width] or [n, height, width, 1 or 3]")
    return images[..., None] if images.ndim == 3 else images


def _files(path: Path, arrays: dict[str, NDArray[Any]]) -> list[NDArray[np.uint8]]:
    jpegs, offsets = arrays["jpegs"], arrays["offsets"]
    _require(path, "jpegs", jpegs, jpegs.dtype == np.uint8 and jpegs.ndim == 1, "uint8 [bytes]")
    fits = offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) > 1
    _require(path, "offsets", offsets, fits, "integers [n + 1]")
    places = offsets.astype(np.int64)
    if places[0] < 0 or places[-1] > len(jpegs) or not (np.diff(places) > 0).all():
        raise DataError(f"{path}: offsets must rise from 0 to at most the {len(jpegs)} bytes of jpegs")
    return [jpegs[start:end] for start, end in pairwise(places.tolist())]


def _require(path: Path, key: str, array: NDArray[Any], fits: bool, what: str) -> None:
    if not fits:
        raise DataError(f"{path}: {key} must be {what}, got {array.dtype} {list(array.shape)}")
