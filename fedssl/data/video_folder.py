"""A folder of video files, split into training and test."""

from collections.abc import Sequence
from pathlib import Path

from fedssl.data.dataset import Splits
from fedssl.data.file_dataset import Layout, open_folder
from fedssl.data.frame_cache import cached
from fedssl.data.video import VIDEOS, VideoDecoder
from fedssl.seeding import generator


def video_folder(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
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
    max_frames: int = 0,
    test_group: str | None = None,
    cache: str | None = None,
    cache_bytes: int = 20_000_000_000,
) -> Splits:
    """Return the videos of a folder: `root/<class>/<file>`, or what `root/metadata.csv` lists.

    Args:
        root: The folder.
        test_owners: The owners to hold out, or the units of `test_group`; needs one of the groups.
        test_fraction: Without `test_owners`, the part that is held out: of the owners or units where there are some,
            else of each class.
        height: Height that frames are resized to, in pixels.
        width: Width that frames are resized to, in pixels.
        channels: 3 for RGB, 1 for grey.
        group: The column of `metadata.csv` that names the owner of each video.
        classes: Names of the classes in the order of their numbers, the same on every device; None numbers those found.
        skip_unreadable: Decode every file now, and leave out those that fail with a warning.
        seed: Seed of the split.
        max_frames: Frames kept of each video; 0 for all.
        test_group: The column that names what is held out whole, such as a patient, where that is not the owner.
        cache: A folder that decoded frames are kept in, shared by all processes; None keeps them in memory.
        cache_bytes: What the frames in the folder may take together.

    Returns:
        The training and the test videos; files are decoded when first read.

    Raises:
        DataError: The folder is missing, has no videos, or lists a file that is not there.
        ValueError: An argument is out of range.
    """
    layout = Layout(test_owners, test_fraction, group, classes, test_group)
    read = cached(VideoDecoder(height, width, channels, max_frames), cache, cache_bytes)
    return open_folder(Path(root), VIDEOS, read, layout, skip_unreadable, generator(seed, "video_folder", "split"))
