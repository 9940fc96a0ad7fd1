"""The atomic bundle of a round, from which a run goes on to the same bits; seeds are derived, so none is in it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedssl.arrays import Arrays
from fedssl.errors import ConfigError
from fedssl.report.records import RoundRecord

FOLDER = "checkpoints"
MEMORIES = "memories"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Bundle:
    """All that a run needs to go on after a round.

    Attributes:
        config: The configuration as text.
        data: Hash of which examples every client holds.
        records: Every round so far.
        arrays: Global tensors by name.
        strategy: What the server rule keeps between rounds, with its optimizer's state.
        memories: For each client that keeps something, by partition, the round in which it did; its file is beside.
        tracker: How a tracker finds its run again.
        untrained_scores: Scores before round 1.
        seconds: Wall-clock time so far.
    """

    config: str
    data: str
    records: tuple[RoundRecord, ...]
    arrays: Arrays
    strategy: Mapping[str, Any]
    memories: Mapping[int, int]
    tracker: Mapping[str, str]
    untrained_scores: Mapping[str, float]
    seconds: float

    @property
    def round(self) -> int:
        """The last round that is done."""
        return len(self.records)


def save(folder: Path, bundle: Bundle) -> None:
    """Write a bundle, whole or not at all; it is on the disk when this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": _FORMAT,
        "config": bundle.config,
        "data": bundle.data,
        "records": [record.to_dict() for record in bundle.records],
        "arrays": {name: torch.from_numpy(np.array(array)) for name, array in bundle.arrays.items()},
        "strategy": dict(bundle.strategy),
        "memories": dict(bundle.memories),
        "tracker": dict(bundle.tracker),
        "untrained_scores": dict(bundle.untrained_scores),
        "seconds": bundle.seconds,
    }
    path = folder / _name(bundle.round)
    partial = folder / f".{path.name}.{os.getpid()}.partial"
    with partial.open("wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def load(folder: Path, round_number: int) -> Bundle:
    """Read the bundle of a round; nothing in it is executed.

    Raises:
        ConfigError: It cannot be read.
    """
    path = folder / _name(round_number)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read; without it the run goes on from the bundle before") from error
    if content.pop("format") != _FORMAT:
        raise ConfigError(f"{path}: was written by another version of fedssl")
    content["arrays"] = {name: tensor.numpy() for name, tensor in content["arrays"].items()}
    content["records"] = tuple(RoundRecord.from_dict(values) for values in content["records"])
    return Bundle(**content)


def delete(folder: Path, round_number: int) -> None:
    """Delete the bundle of a round."""
    (folder / _name(round_number)).unlink()


def rounds(folder: Path) -> list[int]:
    """Return the rounds that have a bundle, rising."""
    return sorted(int(path.stem.removeprefix("round-")) for path in folder.glob("round-*.pt"))


def _name(round_number: int) -> str:
    return f"round-{round_number:06d}.pt"
