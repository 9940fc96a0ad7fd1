"""Files as a dataset: each file is decoded when it is first read."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.data.dataset import Splits
from fedssl.data.frame_cache import FrameCache, fill
from fedssl.data.listing import Kind, ListedFile, list_files
from fedssl.data.split import by_label, by_owner, check_fraction
from fedssl.errors import DataError

LOGGER = logging.getLogger("fedssl")

Decoder = Callable[[Path], NDArray[np.uint8]]
"""Returns a file as `[frames, height, width, channels]`; DataError if it cannot be read."""


@dataclass(slots=True)
class FileDataset:
    """Files that are decoded when first read; implements `Dataset`.

    They are then kept in memory, unless `decode` keeps them on disk.

    Attributes:
        paths: `[num_examples]` files.
        labels: `[num_examples]` int64, indices into `classes`.
        classes: Class names.
        owners: `[num_examples]` owner names; "" where there is none.
        decode: Reads a file.
        clips: The decoded examples by index.
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    owners: tuple[str, ...]
    decode: Decoder
    clips: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return example `index` as `[frames, height, width, channels]` uint8, a read-only array.

        Raises:
            DataError: The file cannot be decoded.
            IndexError: There is no such file.
        """
        if index in self.clips:
            return self.clips[index]
        clip = self.decode(self.paths[index])
        clip.setflags(write=False)
        if not isinstance(self.decode, FrameCache):
            self.clips[index] = clip
        return clip


@dataclass(frozen=True, slots=True)
class Layout:
    """Which files of a folder are the test part, and what its classes are.

    Attributes:
        test_owners: The owners to hold out, or the units of `test_group`; needs one of the groups.
        test_fraction: Without `test_owners`, the part that is held out: of the owners or units where there are some,
            else of each class.
        group: The column of `metadata.csv` that names the owner of each file.
        test_group: The column that names what is held out whole, where that is not the owner.
        classes: Names of the classes in the order of their numbers, which devices must have in common where labels are
            learned; None numbers those of the folder.
    """

    test_owners: Sequence[str]
    test_fraction: float
    group: str | None
    classes: Sequence[str] | None = None
    test_group: str | None = None

    def __post_init__(self) -> None:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must be different names, got {', '.join(map(str, self.classes))}")
        check_fraction(self.test_fraction)
        if self.test_owners and self.group is None and self.test_group is None:
            names = ", ".join(map(str, self.test_owners))
            raise ValueError(f"test_owners must be empty without a group, got {names}")

    def split(
        self, files: Sequence[ListedFile], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the training and the test indices of `files`; ValueError if they cannot be split like this."""
        units = [file.unit for file in files]
        if any(units):
            return by_owner(units, [str(name) for name in self.test_owners], self.test_fraction, rng)
        _, labels = np.unique([file.label for file in files], return_inverse=True)
        return by_label(labels.astype(np.int64), self.test_fraction, rng)

    def numbered(self, root: Path, files: Sequence[ListedFile]) -> tuple[str, ...]:
        """Return the names of the classes; DataError where a file is of another class."""
        found = sorted({file.label for file in files})
        if self.classes is None:
            return tuple(found)
        names = tuple(str(name) for name in self.classes)
        if strange := [label for label in found if label not in names]:
            raise DataError(f"{root}: has the class {strange[0]}, which is not among data.classes: {', '.join(names)}")
        return names


def open_folder(
    root: Path, kind: Kind, decode: Decoder, layout: Layout, skip_unreadable: bool, rng: np.random.Generator
) -> Splits:
    """Return the files of a folder, split into training and test.

    Args:
        root: The folder: `root/<class>/<file>`, or what `root/metadata.csv` lists.
        kind: The files that are looked for.
        decode: Reads a file.
        layout: Which of them are the test part, and what the classes are.
        skip_unreadable: Decode every file now, and leave out those that fail with a warning.
        rng: Chooses what is held out.

    Raises:
        DataError: The folder is missing, has no such files, or lists a file that is not there.
        ValueError: A setting does not fit the folder.
    """
    files = list_files(root, kind, layout.group, layout.test_group)
    if not skip_unreadable:
        check_present(root, files)
    readable, clips = _readable(root, kind, files, decode) if skip_unreadable else (files, {})
    classes = layout.numbered(root, readable)
    parts = layout.split(readable, rng)
    train, test = (_dataset(root, [readable[i] for i in part], classes, decode, clips) for part in parts)
    return Splits(train, test)


def open_lists(
    root: Path,
    kind: Kind,
    decode: Decoder,
    train: Sequence[ListedFile],
    test: Sequence[ListedFile],
    classes: Sequence[str],
    skip_unreadable: bool,
) -> Splits:
    """Return files whose split is published.

    Args:
        root: The folder that names are relative to.
        kind: What the files are.
        decode: Reads a file.
        train: Those to train on.
        test: Those held out.
        classes: Names of the classes in the order of their numbers.
        skip_unreadable: Decode every file now, and leave out those that fail with a warning.

    Raises:
        DataError: None of the files of a part can be read.
    """
    parts = []
    for files in (train, test):
        readable, clips = _readable(root, kind, files, decode) if skip_unreadable else (files, {})
        parts.append(_dataset(root, readable, classes, decode, clips))
    return Splits(*parts)


def fill_cache(splits: Splits) -> None:
    """Decode now, on every core and with a bar, what the examples keep in a cache on disk; nothing without a cache."""
    for part in (splits.train, splits.test):
        if isinstance(part, FileDataset) and isinstance(part.decode, FrameCache):
            fill(part.decode, part.paths)


def check_present(root: Path, files: Sequence[ListedFile], table: str = "metadata.csv") -> None:
    """Raise a DataError that names the first of `files`, listed in `table`, that is not there."""
    if missing := [file for file in files if not (root / file.name).is_file()]:
        raise DataError(f"{root / missing[0].name}: listed in {table} but not there")


def _dataset(
    root: Path,
    files: Sequence[ListedFile],
    classes: Sequence[str],
    decode: Decoder,
    clips: Mapping[str, NDArray[np.uint8]],
) -> FileDataset:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[file.label] for file in files], dtype=np.int64)
    kept = {i: clips[file.name] for i, file in enumerate(files) if file.name in clips}
    paths, owners = tuple(root / file.name for file in files), tuple(file.owner for file in files)
    return FileDataset(paths, labels, tuple(classes), owners, decode, kept)


def _readable(
    root: Path, kind: Kind, files: Sequence[ListedFile], decode: Decoder
) -> tuple[list[ListedFile], dict[str, NDArray[np.uint8]]]:
    """Return the files that can be read, and their frames by name where nothing else keeps them."""
    readable: list[ListedFile] = []
    clips: dict[str, NDArray[np.uint8]] = {}
    for file in files:
        try:
            clip = decode(root / file.name)
        except DataError as error:
            LOGGER.warning("left out %s", error)
            continue
        readable.append(file)
        if not isinstance(decode, FrameCache):
            clip.setflags(write=False)
            clips[file.name] = clip
    if not readable:
        raise DataError(f"{root}: none of its {len(files)} {kind.plural} can be read")
    return readable, clips
