"""Which videos a folder holds, with the label and the owner of each."""

import csv
from dataclasses import dataclass
from pathlib import Path

from fedssl.errors import DataError

SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
"""Endings of the files in class folders that count as videos, in lower case."""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """One video of a folder.

    Attributes:
        name: Path relative to the folder, with forward slashes.
        label: Class name.
        owner: Owner name; "" where there is none.
    """

    name: str
    label: str
    owner: str


def list_videos(root: Path, group: str | None) -> list[VideoFile]:
    """Return the videos of `root`, sorted by name.

    They are the rows of `metadata.csv` (columns file, label and `group`) where there is one, else the video files
    in the class folders.

    Args:
        root: The folder.
        group: The column of `metadata.csv` that names the owner; None for no owners.

    Raises:
        DataError: The folder is missing or has no videos, or `metadata.csv` is malformed.
        ValueError: `group` is not a column.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    table = root / "metadata.csv"
    if table.is_file():
        files = _from_table(table, group)
    elif group is not None:
        raise ValueError(f"group must be null in a folder without metadata.csv, got {group}")
    else:
        files = _from_folders(root)
    if not files:
        raise DataError(f"{root}: has no videos, neither in metadata.csv nor in class folders")
    return sorted(files, key=lambda file: file.name)


def _from_folders(root: Path) -> list[VideoFile]:
    found = [path for path in root.glob("*/*") if path.is_file() and path.suffix.lower() in SUFFIXES]
    return [
        VideoFile(path.relative_to(root).as_posix(), path.parent.name, "")
        for path in found
        if not path.name.startswith(".")
    ]


def _from_table(table: Path, group: str | None) -> list[VideoFile]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read ({error})") from error
    if missing := [name for name in ("file", "label") if name not in columns]:
        raise DataError(f"{table}: has no column {' or '.join(missing)}")
    if group is not None and group not in columns:
        raise ValueError(f"group must be a column of metadata.csv ({', '.join(columns)}), got {group}")
    wanted = ["file", "label"] if group is None else ["file", "label", group]
    for number, row in enumerate(rows, start=1):
        if empty := [name for name in wanted if not row[name]]:
            raise DataError(f"{table}: row {number} has no {empty[0]}")
    return _without_repeats(table, [VideoFile(row["file"], row["label"], row[group] if group else "") for row in rows])


def _without_repeats(table: Path, files: list[VideoFile]) -> list[VideoFile]:
    seen: set[str] = set()
    for file in files:
        if file.name in seen:
            raise DataError(f"{table}: lists {file.name} twice")
        seen.add(file.name)
    return files
