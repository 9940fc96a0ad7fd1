"""Which files a folder holds, with the label and the owner of each."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedssl.errors import DataError


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file.

    Attributes:
        plural: What such files are called.
        suffixes: Endings that count in class folders, in lower case.
    """

    plural: str
    suffixes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One file of a folder.

    Attributes:
        name: Path relative to the folder, with forward slashes.
        label: Class name.
        owner: Owner name; "" where there is none.
        unit: What only training or only test files share, such as a patient; "" where there is none.
    """

    name: str
    label: str
    owner: str
    unit: str = ""


def list_files(root: Path, kind: Kind, group: str | None, test_group: str | None = None) -> list[ListedFile]:
    """Return the files of `root`, sorted by name.

    They are the rows of `metadata.csv` (columns file, label, `group` and `test_group`) where there is one, else the
    files of that kind in the class folders.

    Args:
        root: The folder.
        kind: The files that are looked for.
        group: The column of `metadata.csv` that names the owner; None for no owners.
        test_group: The column that names the unit; None for that of the owner.

    Raises:
        DataError: The folder is missing or has no such files, or `metadata.csv` is malformed.
        ValueError: `group` or `test_group` is not a column.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    table = root / "metadata.csv"
    chosen = {name: column for name, column in (("group", group), ("test_group", test_group)) if column is not None}
    if table.is_file():
        files = _from_table(table, chosen)
    elif chosen:
        name, column = next(iter(chosen.items()))
        raise ValueError(f"{name} must be null in a folder without metadata.csv, got {column}")
    else:
        files = _from_folders(root, kind)
    if not files:
        raise DataError(f"{root}: has no {kind.plural}, neither in metadata.csv nor in class folders")
    return sorted(files, key=lambda file: file.name)


def _from_folders(root: Path, kind: Kind) -> list[ListedFile]:
    found = [path for path in root.glob("*/*") if path.is_file() and path.suffix.lower() in kind.suffixes]
    return [
        ListedFile(path.relative_to(root).as_posix(), path.parent.name, "")
        for path in found
        if not path.name.startswith(".")
    ]


def _from_table(table: Path, chosen: Mapping[str, str]) -> list[ListedFile]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read ({error})") from error
    if missing := [name for name in ("file", "label") if name not in columns]:
        raise DataError(f"{table}: has no column {' or '.join(missing)}")
    for name, column in chosen.items():
        if column not in columns:
            raise ValueError(f"{name} must be a column of metadata.csv ({', '.join(columns)}), got {column}")
    wanted = ["file", "label", *chosen.values()]
    for number, row in enumerate(rows, start=1):
        if empty := [name for name in wanted if not row[name]]:
            raise DataError(f"{table}: row {number} has no {empty[0]}")
    group = chosen.get("group")
    unit = chosen.get("test_group", group)
    files = [
        ListedFile(row["file"], row["label"], row[group] if group else "", row[unit] if unit else "") for row in rows
    ]
    return _without_repeats(table, files)


def _without_repeats(table: Path, files: list[ListedFile]) -> list[ListedFile]:
    seen: set[str] = set()
    for file in files:
        if file.name in seen:
            raise DataError(f"{table}: lists {file.name} twice")
        seen.add(file.name)
    return files
