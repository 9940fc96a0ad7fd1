"""The directory one run writes: no reader ever sees half a file, no run ever overwrites another."""

import json
import os
from pathlib import Path

import numpy as np

from fedssl.arrays import Arrays
from fedssl.errors import ConfigError
from fedssl.report.records import RoundRecord, RunResult
from fedssl.report.versions import versions

CONFIG = "config.yaml"
ROUNDS = "rounds.jsonl"
RESULT = "result.json"
ENCODER = "encoder.safetensors"

__all__ = ["CONFIG", "ENCODER", "RESULT", "ROUNDS", "RunDirectory", "versions"]


class RunDirectory:
    """The files of one run; make a new one with `create`.

    Attributes:
        path: The directory, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config_yaml: str) -> "RunDirectory":
        """Make the directory with its parents and write the resolved configuration.

        Raises:
            ConfigError: If `path` is a file or already holds a run; nothing is written then.
        """
        if path.exists() and not path.is_dir():
            raise ConfigError(f"run_dir={path}: is a file; choose a directory")
        if any((path / name).exists() for name in (CONFIG, ROUNDS, RESULT)):
            raise ConfigError(f"run_dir={path}: already holds a run; choose another directory")
        path.mkdir(parents=True, exist_ok=True)
        directory = cls(path)
        directory.write_text(CONFIG, config_yaml)
        return directory

    def append_round(self, record: RoundRecord) -> None:
        """Append `record` to rounds.jsonl as one line, and return once it is on the disk."""
        line = json.dumps(record.to_dict(), allow_nan=False)
        with (self.path / ROUNDS).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def write_result(self, result: RunResult) -> None:
        """Write result.json."""
        self.write_text(RESULT, json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")

    def write_encoder(self, arrays: Arrays) -> None:
        """Write encoder.safetensors, tensors by name."""
        from safetensors.numpy import save

        self._write(ENCODER, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))

    def write_text(self, name: str, text: str) -> None:
        """Write `text` in UTF-8 to the file `name` of this directory.

        Raises:
            ValueError: If `name` is not a plain file name.
        """
        self._write(name, text.encode())

    def _write(self, name: str, content: bytes) -> None:
        if Path(name).name != name:
            raise ValueError(f"name must be a plain file name, got {name!r}")
        partial = self.path / f".{name}.{os.getpid()}.partial"
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(self.path / name)
        finally:
            partial.unlink(missing_ok=True)
