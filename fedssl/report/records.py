"""What one round and one run came to, ready for JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Failure:
    """A client that was asked and did not answer with an update.

    Attributes:
        round: The round it was asked in, from 1.
        partition: Index of the client's partition.
        reason: One line for a person to read.
    """

    round: int
    partition: int
    reason: str

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return {"round": self.round, "partition": self.partition, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What one round came to.

    Attributes:
        round: From 1.
        scores: Held-out scores by name; empty in a round without an evaluation.
        metrics: Training numbers by name, averaged over the clients ("loss", ...).
        epsilon: Privacy spent so far; None without a guarantee.
        bytes_up: Payload from the clients, in bytes.
        bytes_down: Payload to the clients, in bytes.
        seconds: Wall-clock time of the round, in seconds.
        clients: Partitions whose updates were merged.
        failures: Clients that were asked and failed.
        absent: Clients that were chosen and, by the availability model, left or were late.
        virtual_seconds: The round's time on the virtual clock of the availability model; None without one.
    """

    round: int
    scores: Mapping[str, float]
    metrics: Mapping[str, float]
    epsilon: float | None
    bytes_up: int
    bytes_down: int
    seconds: float
    clients: tuple[int, ...]
    failures: tuple[Failure, ...]
    absent: tuple[Failure, ...] = ()
    virtual_seconds: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON values; a number that is not finite becomes null."""
        return {
            "round": self.round,
            "scores": plain(self.scores),
            "metrics": plain(self.metrics),
            "epsilon": plain(self.epsilon),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds": plain(self.seconds),
            "clients": plain(self.clients),
            "failures": [failure.to_dict() for failure in self.failures],
            "absent": [failure.to_dict() for failure in self.absent],
            "virtual_seconds": plain(self.virtual_seconds),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RoundRecord":
        """Return the record whose `to_dict` was `values`."""
        people = {name: tuple(Failure(**item) for item in values[name]) for name in ("failures", "absent")}
        return cls(**{**values, **people, "clients": tuple(values["clients"])})


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a whole run came to.

    Attributes:
        status: "completed", or why it ended early.
        rounds_completed: Rounds whose merge was kept.
        model_sha256: Hash of the final encoder's arrays.
        scores: Held-out scores of the final encoder by name.
        untrained_scores: The same scores of the encoder before round 1.
        privacy: One mapping per guarantee; None without one.
        clients: Number of clients in the federation.
        failures: Number of failures over all rounds.
        seconds: Wall-clock time of the run, in seconds.
        bytes_up: Payload from the clients over all rounds, in bytes.
        bytes_down: Payload to the clients over all rounds, in bytes.
        versions: Version of each library by name.
        stopped_early: Why the run ended before its last round, or None.
        best: The round with the best value of the score that checkpoints watch, with that value; None without one.
        virtual_seconds: Time on the virtual clock of the availability model; None without one.
        protection: What clients did to their images before round 1, which guarantees nothing; None: nothing.
    """

    status: str
    rounds_completed: int
    model_sha256: str
    scores: Mapping[str, float]
    untrained_scores: Mapping[str, float]
    privacy: list[Mapping[str, object]] | None
    clients: int
    failures: int
    seconds: float
    bytes_up: int
    bytes_down: int
    versions: Mapping[str, str]
    stopped_early: str | None = None
    best: Mapping[str, float] | None = None
    virtual_seconds: float | None = None
    protection: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON values; a number that is not finite becomes null."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}


def plain(value: object) -> object:
    """Return `value` made of JSON types only; a number that is not finite becomes None, an unknown object its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
