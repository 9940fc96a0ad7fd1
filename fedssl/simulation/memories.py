"""What every client keeps between rounds, on a grid: where it is, and its files beside a checkpoint."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

_SUFFIX = ".memory"


@dataclass(frozen=True, slots=True)
class _Kept:
    round: int
    value: Any


class Memories:
    """The state of each client that took part, by partition; a file is written once and never changed.

    Args:
        fetch: Turns a value into records: where the grid keeps them (this process, an object store) is its affair.
        leave_on_disk: Let go of a value once it has a file, and read it again when it is asked for.
    """

    def __init__(self, fetch: Callable[[Any], RecordDict], *, leave_on_disk: bool) -> None:
        self._fetch = fetch
        self._leave_on_disk = leave_on_disk
        self._kept: dict[int, _Kept] = {}
        self._unsaved: set[int] = set()

    def get(self, partition: int) -> Any:  # noqa: ANN401 - the grid's own kind of value
        """Return the grid's value of a client, its records if they come from a file, or None before its first round."""
        kept = self._kept.get(partition)
        if kept is None:
            return None
        return read(kept.value) if isinstance(kept.value, Path) else kept.value

    def put(self, partition: int, round_number: int, value: Any) -> None:  # noqa: ANN401
        """Keep what `partition` remembers after `round_number`."""
        self._kept[partition] = _Kept(round_number, value)
        self._unsaved.add(partition)

    def save(self, folder: Path) -> dict[int, int]:
        """Write what has no file yet, and return the round of each client's memory by partition."""
        folder.mkdir(parents=True, exist_ok=True)
        for partition in sorted(self._unsaved):
            kept = self._kept[partition]
            path = folder / file_name(partition, kept.round)
            write(path, self._fetch(kept.value))
            if self._leave_on_disk:
                self._kept[partition] = _Kept(kept.round, path)
        self._unsaved.clear()
        return {partition: kept.round for partition, kept in self._kept.items()}

    def restore(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Take over the files of an earlier run, by what `save` returned.

        Raises:
            FileNotFoundError: A file is missing.
        """
        paths = {partition: folder / file_name(partition, number) for partition, number in rounds.items()}
        missing = [path for path in paths.values() if not path.exists()]
        if missing:
            raise FileNotFoundError(f"{missing[0]}: the memory of a client is missing")
        self._kept = {partition: _Kept(rounds[partition], path) for partition, path in paths.items()}

    def clear(self) -> None:
        """Forget every client."""
        self._kept.clear()
        self._unsaved.clear()


def file_name(partition: int, round_number: int) -> str:
    """Return the name of the file with what a client remembers after a round."""
    return f"{partition}-{round_number}{_SUFFIX}"


def write(path: Path, state: RecordDict) -> None:
    """Write records as Flower sends them, whole or not at all."""
    for record in state.array_records.values():
        for array in record.values():
            if not isinstance(array.data, bytes):
                array.data = bytes(array.data)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as stream:
        stream.write(recorddict_to_proto(state).SerializeToString())
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def read(path: Path) -> RecordDict:
    """Read what `write` wrote."""
    return recorddict_from_proto(ProtoRecordDict.FromString(path.read_bytes()))
