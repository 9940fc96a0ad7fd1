"""Pack a folder of images into one file: `python -m fedssl.data.pack FOLDER FILE`, for `data=packed data.root=FILE`."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.file_dataset import check_present
from fedssl.data.image_files import IMAGES, Size, decode
from fedssl.data.listing import ListedFile, list_files
from fedssl.data.packed_file import PackedImages, read_packed, write_packed
from fedssl.errors import DataError

COMPLETED, BAD_INPUT = 0, 2


def pack(source: Path, group: str | None, channels: int, size: Size | None) -> PackedImages:
    """Return the images of a folder or of a packed file as pixels of one size.

    Args:
        source: A folder of class folders or with metadata.csv, or a packed file.
        group: The column of metadata.csv that names the owner of each image.
        channels: 3 for RGB, 1 for grey.
        size: Height and width that images are resized to; None keeps theirs, which must then be the same.

    Raises:
        DataError: There are no images, or one cannot be used.
        ValueError: `group` is given without a metadata.csv that has it.
    """
    if source.is_dir():
        return _pack_folder(source, list_files(source, IMAGES, group), channels, size)
    if group is not None:
        raise ValueError(f"group must be left out for a file, got {group}")
    packed = read_packed(source)
    images = packed.pixels(np.arange(len(packed.labels)), channels, size)
    return PackedImages(source, images, packed.labels, packed.classes, packed.owners)


def main(arguments: list[str]) -> int:
    """Pack and return the exit status: 0 completed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m fedssl.data.pack", description=__doc__)
    parser.add_argument("source", metavar="FOLDER", type=Path, help="class folders or metadata.csv; or an npz file")
    parser.add_argument("target", metavar="FILE", type=Path, help="the packed file that is written")
    parser.add_argument("--size", type=int, help="height and width in pixels; left out: as they are")
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1 for grey, 3 for RGB (default)")
    parser.add_argument("--group", help="the column of metadata.csv that names the owner of each image")
    options = parser.parse_args(arguments)
    try:
        at_least(1, size=options.size)
        if not (folder := options.target.parent).is_dir():
            raise DataError(f"{folder}: no such folder")
        size = None if options.size is None else (options.size, options.size)
        packed = pack(options.source, options.group, options.channels, size)
        write_packed(options.target, np.asarray(packed.images), packed.labels, packed.classes, packed.owners)
    except (DataError, ValueError, OSError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return BAD_INPUT
    shape = "x".join(map(str, np.shape(packed.images)[1:]))
    sys.stdout.write(f"{options.target}: {len(packed.labels)} images of {shape}, {len(packed.classes)} classes\n")
    return COMPLETED


def _pack_folder(root: Path, files: list[ListedFile], channels: int, size: Size | None) -> PackedImages:
    check_present(root, files)
    images: list[NDArray[np.uint8]] = []
    for file in _shown(files):
        images.append(decode(root / file.name, str(root / file.name), channels, size))
        if (shape := images[-1].shape) != images[0].shape:
            other = f"{shape[0]}x{shape[1]}, not the {images[0].shape[0]}x{images[0].shape[1]}"
            raise DataError(f"{root / file.name}: is {other} of the first image; images of several sizes need --size N")
    classes = tuple(sorted({file.label for file in files}))
    labels = np.array([classes.index(file.label) for file in files], dtype=np.int64)
    return PackedImages(root, np.stack(images), labels, classes, tuple(file.owner for file in files))


def _shown(files: list[ListedFile]) -> Iterable[ListedFile]:
    """Return `files` with a bar on stderr that moves as they are taken, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    return track(files, "images", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
