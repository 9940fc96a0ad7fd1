"""The directory one run writes: no reader ever sees half a file, no run ever overwrites another."""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedssl.arrays import Arrays
from fedssl.errors import ConfigError
from fedssl.models.bundle import BACKBONE, group
from fedssl.objectives.objective import CLASSIFIER
from fedssl.report.records import Failure, RoundRecord, RunResult

CONFIG = "config.yaml"
ROUNDS = "rounds.jsonl"
RESULT = "result.json"
ERROR = "error.txt"
ENCODER = "encoder.safetensors"
BEST_ENCODER = "encoder_best.safetensors"
CLASSIFIER_FILE = "classifier.safetensors"
BEST_CLASSIFIER = "classifier_best.safetensors"
FAILURES = "failures"
PROTECTION = "protection"
NEIGHBOURS = "neighbours.png"
PLANTED = "planted.json"
_PARTIAL = ".partial"

__all__ = [
    "BEST_CLASSIFIER",
    "BEST_ENCODER",
    "CLASSIFIER_FILE",
    "CONFIG",
    "ENCODER",
    "ERROR",
    "NEIGHBOURS",
    "PLANTED",
    "PROTECTION",
    "RESULT",
    "ROUNDS",
    "RunDirectory",
]


class RunDirectory:
    """The files of one run; make a new one with `create`, go on with one by `reopen`. One process at a time holds it.

    Attributes:
        path: The directory, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: int | None = None

    @classmethod
    def create(cls, path: Path, config_yaml: str) -> "RunDirectory":
        """Make the directory with its parents and write the resolved configuration.

        Raises:
            ConfigError: If `path` is a file or already holds a run; nothing is written then.
        """
        if path.exists() and not path.is_dir():
            raise ConfigError(f"run_dir={path}: is a file; choose a directory")
        if any((path / name).exists() for name in (CONFIG, ROUNDS, RESULT, PROTECTION)):
            raise ConfigError(f"run_dir={path}: already holds a run; choose another directory, or resume=auto")
        path.mkdir(parents=True, exist_ok=True)
        directory = cls(path)
        directory._hold()
        directory.write_text(CONFIG, config_yaml)
        return directory

    @classmethod
    def reopen(cls, path: Path, records: Sequence[RoundRecord]) -> "RunDirectory":
        """Go on with a run after `records`; what it wrote after them, or at its end, is taken back.

        Raises:
            ConfigError: Another process is writing to it.
        """
        directory = cls(path)
        directory._hold()
        for partial in path.rglob(f".*{_PARTIAL}"):
            partial.unlink()
        for name in (RESULT, ERROR, NEIGHBOURS):
            (path / name).unlink(missing_ok=True)
        directory.write_text(ROUNDS, "".join(_line(record) for record in records))
        return directory

    def _hold(self) -> None:
        """Lock the directory until this process closes it or is gone."""
        self._held = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise ConfigError(f"run_dir={self.path}: another process is writing to it") from error

    def close(self) -> None:
        """Let another process go on with the run."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def read_result(self) -> RunResult | None:
        """Return what the run came to, or None before its end."""
        path = self.path / RESULT
        return RunResult(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def append_round(self, record: RoundRecord) -> None:
        """Append `record` to rounds.jsonl as one line, and return once it is on the disk."""
        with (self.path / ROUNDS).open("a", encoding="utf-8") as stream:
            stream.write(_line(record))
            stream.flush()
            os.fsync(stream.fileno())

    def write_result(self, result: RunResult) -> None:
        """Write result.json."""
        self.write_text(RESULT, json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")

    def write_failure(self, failure: Failure, details: str) -> str:
        """Write all that is known of a failed client to a file of its own, and return the path in this directory."""
        (self.path / FAILURES).mkdir(exist_ok=True)
        name = f"{FAILURES}/round-{failure.round}-partition-{failure.partition}.txt"
        self._write(name, (details.rstrip() + "\n").encode())
        return name

    def write_model(self, arrays: Arrays, *, best: bool = False) -> None:
        """Write the encoder of a model, and its classifier where it has one.

        Args:
            arrays: The model's tensors by name.
            best: Whether it is the model of the best round, and not the last one.
        """
        self.write_tensors(group(arrays, BACKBONE), BEST_ENCODER if best else ENCODER)
        if classifier := group(arrays, CLASSIFIER):
            self.write_tensors(classifier, BEST_CLASSIFIER if best else CLASSIFIER_FILE)

    def write_tensors(self, arrays: Arrays, name: str) -> None:
        """Write tensors by name into a safetensors file."""
        from safetensors.numpy import save

        self._write(name, save({name: np.asarray(array, order="C") for name, array in arrays.items()}))

    def write_text(self, name: str, text: str) -> None:
        """Write `text` in UTF-8 to the file `name` of this directory.

        Raises:
            ValueError: If `name` is not a plain file name.
        """
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write `content` to the file `name` of this directory.

        Raises:
            ValueError: If `name` is not a plain file name.
        """
        if Path(name).name != name:
            raise ValueError(f"name must be a plain file name, got {name!r}")
        self._write(name, content)

    def _write(self, name: str, content: bytes) -> None:
        path = self.path / name
        partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _line(record: RoundRecord) -> str:
    return json.dumps(record.to_dict(), allow_nan=False) + "\n"
