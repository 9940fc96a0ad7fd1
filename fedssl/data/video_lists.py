"""Video sets whose publishers split them by lists: UCF101, HMDB51 and Kinetics-400, as they are unpacked."""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedssl.checks import within
from fedssl.data.dataset import Splits
from fedssl.data.file_dataset import check_present, open_lists
from fedssl.data.frame_cache import cached
from fedssl.data.listing import ListedFile
from fedssl.data.video import VIDEOS, VideoDecoder
from fedssl.errors import DataError

LOGGER = logging.getLogger("fedssl")

UCF_GROUP = re.compile(r"_(g\d+)_c\d+\.")
HMDB_TRAIN, HMDB_TEST = "1", "2"


def ucf101(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
    root: str,
    lists: str | None = None,
    split: int = 1,
    height: int = 64,
    width: int = 64,
    channels: int = 3,
    skip_unreadable: bool = False,
    max_frames: int = 0,
    cache: str | None = None,
    cache_bytes: int = 20_000_000_000,
) -> Splits:
    """Return UCF101 (Soomro 2012), split by `trainlist01.txt` and `testlist01.txt`; the owner is the group, "g08".

    Args:
        root: The folder of the class folders.
        lists: The folder of the lists and of `classInd.txt`; None: `ucfTrainTestlist`, in `root` or beside it.
        split: Which of the three published splits.
        height: Height that frames are resized to, in pixels.
        width: Width that frames are resized to, in pixels.
        channels: 3 for RGB, 1 for grey.
        skip_unreadable: Decode every file now, and leave out those that fail with a warning.
        max_frames: Frames kept of each video; 0 for all.
        cache: A folder that decoded frames are kept in, shared by all processes; None keeps them in memory.
        cache_bytes: What the frames in the folder may take together.

    Raises:
        DataError: A list or a listed file is missing, or a list is malformed.
        ValueError: An argument is out of range.
    """
    within(1, 3, split=split)
    decode = cached(VideoDecoder(height, width, channels, max_frames), cache, cache_bytes)
    folder, own = Path(root), _folder(Path(root), lists, "ucfTrainTestlist")
    classes = [words[-1] for words in _rows(own / "classInd.txt")]
    parts = []
    for name in (f"trainlist0{split}.txt", f"testlist0{split}.txt"):
        files = [_ucf_file(own / name, words[0], classes) for words in _rows(own / name)]
        check_present(folder, files, name)
        parts.append(files)
    return open_lists(folder, VIDEOS, decode, parts[0], parts[1], classes, skip_unreadable)


def hmdb51(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
    root: str,
    lists: str | None = None,
    split: int = 1,
    height: int = 64,
    width: int = 64,
    channels: int = 3,
    skip_unreadable: bool = False,
    max_frames: int = 0,
    cache: str | None = None,
    cache_bytes: int = 20_000_000_000,
) -> Splits:
    """Return HMDB51 (Kuehne 2011), split by `CLASS_test_split1.txt`, which leaves out about a third; no owners.

    Args:
        root: The folder of the class folders.
        lists: The folder of the lists; None: `testTrainMulti_7030_splits`, in `root` or beside it.
        split: Which of the three published splits.
        height: Height that frames are resized to, in pixels.
        width: Width that frames are resized to, in pixels.
        channels: 3 for RGB, 1 for grey.
        skip_unreadable: Decode every file now, and leave out those that fail with a warning.
        max_frames: Frames kept of each video; 0 for all.
        cache: A folder that decoded frames are kept in, shared by all processes; None keeps them in memory.
        cache_bytes: What the frames in the folder may take together.

    Raises:
        DataError: A list or a listed file is missing, or a list is malformed.
        ValueError: An argument is out of range.
    """
    within(1, 3, split=split)
    decode = cached(VideoDecoder(height, width, channels, max_frames), cache, cache_bytes)
    folder, own = Path(root), _folder(Path(root), lists, "testTrainMulti_7030_splits")
    ending = f"_test_split{split}.txt"
    tables = sorted(own.glob(f"*{ending}"))
    if not tables:
        raise DataError(f"{own}: has no CLASS{ending}")
    classes = [table.name.removesuffix(ending) for table in tables]
    parts: dict[str, list[ListedFile]] = {HMDB_TRAIN: [], HMDB_TEST: []}
    for table, label in zip(tables, classes, strict=True):
        for *words, part in _rows(table):
            if not words:
                raise DataError(f"{table}: {part} stands alone, without a name or a number")
            if part in parts:
                parts[part].append(ListedFile(f"{label}/{' '.join(words)}", label, ""))
    for files in parts.values():
        check_present(folder, files, f"CLASS{ending}")
    return open_lists(folder, VIDEOS, decode, parts[HMDB_TRAIN], parts[HMDB_TEST], classes, skip_unreadable)


def kinetics400(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
    root: str,
    lists: str | None = None,
    height: int = 64,
    width: int = 64,
    channels: int = 3,
    skip_unreadable: bool = False,
    max_frames: int = 0,
    cache: str | None = None,
    cache_bytes: int = 20_000_000_000,
) -> Splits:
    """Return Kinetics-400 (Kay 2017) by its tables of YouTube videos; the validation videos are the test part.

    A row of a table is the video `ID_000012_000022.*`, or `ID.*`, anywhere in `root/train` or `root/val`, whatever the
    class folders are called. Many videos have left YouTube: rows without a file are counted in a warning.

    Args:
        root: The folder of `train` and `val`.
        lists: The folder of `train.csv` and `val.csv` (or `validate.csv`), with the columns label, youtube_id,
            time_start and time_end; None: `annotations`, in `root` or beside it.
        height: Height that frames are resized to, in pixels.
        width: Width that frames are resized to, in pixels.
        channels: 3 for RGB, 1 for grey.
        skip_unreadable: Decode every file now, and leave out those that fail with a warning.
        max_frames: Frames kept of each video; 0 for all.
        cache: A folder that decoded frames are kept in, shared by all processes; None keeps them in memory.
        cache_bytes: What the frames in the folder may take together.

    Raises:
        DataError: A table is missing or malformed, or a part has no videos.
        ValueError: An argument is out of range.
    """
    decode = cached(VideoDecoder(height, width, channels, max_frames), cache, cache_bytes)
    folder, own = Path(root), _folder(Path(root), lists, "annotations")
    tables = [_kinetics_rows(_first(own, names)) for names in (("train.csv",), ("val.csv", "validate.csv"))]
    classes = sorted({label for label, _ in tables[0]})
    parts = [_kinetics_files(folder, part, rows) for part, rows in zip(("train", "val"), tables, strict=True)]
    if strange := sorted({file.label for file in parts[1]} - set(classes)):
        raise DataError(f"{own}: the class {strange[0]} has no training videos")
    return open_lists(folder, VIDEOS, decode, parts[0], parts[1], classes, skip_unreadable)


def _folder(root: Path, lists: str | None, usual: str) -> Path:
    """Return the folder of the lists."""
    places = [root / usual, root.parent / usual] if lists is None else [Path(lists)]
    found = [place for place in places if place.is_dir()]
    if not found:
        raise DataError(f"{' or '.join(map(str, places))}: no such folder; data.lists names the one of the lists")
    return found[0]


def _first(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: has no {' or '.join(names)}")


def _rows(table: Path) -> list[list[str]]:
    """Return the words of each line that has some."""
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read ({error})") from error
    rows = [line.split() for line in lines if line.strip()]
    if not rows:
        raise DataError(f"{table}: is empty")
    return rows


def _ucf_file(table: Path, name: str, classes: Sequence[str]) -> ListedFile:
    label, group = name.partition("/")[0], UCF_GROUP.search(name)
    if label not in classes:
        raise DataError(f"{table}: {name} is of no class of classInd.txt")
    if group is None:
        raise DataError(f"{table}: {name} names no group, such as g01_c01")
    return ListedFile(name, label, group[1])


def _kinetics_rows(table: Path) -> list[tuple[str, tuple[str, str]]]:
    """Return the label and the two names that a video can have, of each row."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
        return [(row["label"], (_clip_name(row), row["youtube_id"])) for row in rows]
    except KeyError as error:
        raise DataError(f"{table}: has no column {error.args[0]}") from error
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, TypeError) as error:
        raise DataError(f"{table}: cannot be read ({error})") from error


def _clip_name(row: Mapping[str, str]) -> str:
    return f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"


def _kinetics_files(root: Path, part: str, rows: Sequence[tuple[str, tuple[str, str]]]) -> list[ListedFile]:
    there = {path.stem: path for path in sorted((root / part).rglob("*")) if path.suffix.lower() in VIDEOS.suffixes}
    files = []
    for label, names in rows:
        path = next((there[name] for name in names if name in there), None)
        if path is not None:
            files.append(ListedFile(path.relative_to(root).as_posix(), label, ""))
    if not files:
        raise DataError(f"{root / part}: has none of the {len(rows)} listed videos")
    if len(files) < len(rows):
        LOGGER.warning("%s: %d of %d listed videos are not there", root / part, len(rows) - len(files), len(rows))
    return files
