"""A folder of video files, split into training and test."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.data.dataset import Splits
from fedssl.data.split import by_label, by_owner, check_channels, check_fraction
from fedssl.data.video import VideoDataset, decode
from fedssl.data.video_files import VideoFile, list_videos
from fedssl.errors import DataError
from fedssl.seeding import generator

LOGGER = logging.getLogger("fedssl")


def video_folder(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
    root: str,
    test_owners: Sequence[str] = (),
    test_fraction: float = 0.2,
    height: int = 64,
    width: int = 64,
    channels: int = 3,
    group: str | None = None,
    skip_unreadable: bool = False,
    seed: int = 0,
    max_frames: int = 0,
) -> Splits:
    """Return the videos of a folder: `root/<class>/<file>`, or what `root/metadata.csv` lists.

    Args:
        root: The folder.
        test_owners: The owners to hold out; needs `group`.
        test_fraction: Without `test_owners`, the part that is held out: of the owners if there is a `group`,
            else of each class.
        height: Height that frames are resized to, in pixels.
        width: Width that frames are resized to, in pixels.
        channels: 3 for RGB, 1 for grey.
        group: The column of `metadata.csv` that names the owner of each video.
        skip_unreadable: Decode every file now, and leave out those that fail with a warning.
        seed: Seed of the split.
        max_frames: Frames kept of each video; 0 for all.

    Returns:
        The training and the test videos; files are decoded when first read.

    Raises:
        DataError: The folder is missing, has no videos, or lists a file that is not there.
        ValueError: An argument is out of range.
    """
    _check(test_owners, test_fraction, height, width, channels, group, max_frames)
    folder = Path(root)
    files = list_videos(folder, group)
    clips: dict[str, NDArray[np.uint8]] = {}
    if skip_unreadable:
        clips = _readable(folder, files, (height, width, channels, max_frames))
        files = [file for file in files if file.name in clips]
    elif missing := [file for file in files if not (folder / file.name).is_file()]:
        raise DataError(f"{folder / missing[0].name}: listed in metadata.csv but not there")
    classes = tuple(sorted({file.label for file in files}))

    def build(part: NDArray[np.int64]) -> VideoDataset:
        chosen = [files[i] for i in part]
        labels = np.array([classes.index(file.label) for file in chosen], dtype=np.int64)
        kept = {i: clips[file.name] for i, file in enumerate(chosen) if file.name in clips}
        paths, owners = tuple(folder / file.name for file in chosen), tuple(file.owner for file in chosen)
        return VideoDataset(paths, labels, classes, owners, height, width, channels, max_frames, kept)

    train, test = _split(files, [str(name) for name in test_owners], test_fraction, seed)
    return Splits(build(train), build(test))


def _check(
    test_owners: Sequence[str],
    test_fraction: float,
    height: int,
    width: int,
    channels: int,
    group: str | None,
    max_frames: int,
) -> None:
    check_fraction(test_fraction)
    check_channels(channels)
    for name, value, lowest in (("height", height, 1), ("width", width, 1), ("max_frames", max_frames, 0)):
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")
    if test_owners and group is None:
        raise ValueError(f"test_owners must be empty without a group, got {', '.join(map(str, test_owners))}")


def _readable(root: Path, files: Sequence[VideoFile], form: tuple[int, int, int, int]) -> dict[str, NDArray[np.uint8]]:
    """Return the decoded videos by name, without those that cannot be read."""
    clips: dict[str, NDArray[np.uint8]] = {}
    for file in files:
        try:
            clips[file.name] = decode(root / file.name, *form)
        except DataError as error:
            LOGGER.warning("left out %s", error)
        else:
            clips[file.name].setflags(write=False)
    if not clips:
        raise DataError(f"{root}: none of its {len(files)} videos can be read")
    return clips


def _split(
    files: Sequence[VideoFile], test_owners: Sequence[str], test_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = generator(seed, "video_folder", "split")
    owners = [file.owner for file in files]
    if any(owners):
        return by_owner(owners, test_owners, test_fraction, rng)
    _, labels = np.unique([file.label for file in files], return_inverse=True)
    return by_label(labels.astype(np.int64), test_fraction, rng)
