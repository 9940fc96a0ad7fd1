"""Devices that sleep, are slow and leave, on a virtual clock: partial participation without waiting for it."""

import math
from dataclasses import dataclass
from typing import Protocol

from fedssl.checks import above, within
from fedssl.seeding import generator


class Availability(Protocol):
    """Who can be chosen, and what becomes of a chosen client; every answer is a function of its arguments.

    Attributes:
        deadline_seconds: Virtual time after which a round goes on without those who are late; None waits.
        idle_seconds: Virtual time that passes when nobody is online.
    """

    deadline_seconds: float | None
    idle_seconds: float

    def online(self, seed: int, partition: int, now: float) -> bool:
        """Return whether a client can be chosen at virtual time `now`, in seconds."""
        ...

    def seconds(self, seed: int, partition: int, round_number: int, num_examples: int) -> float | None:
        """Return the virtual time a chosen client takes to answer; None when it leaves before."""
        ...


@dataclass(frozen=True, slots=True)
class VirtualDevices:
    """Devices with a speed of their own and a daily rhythm, any of which may leave.

    A device works `latency + seconds_per_example * num_examples` seconds, times exp(speed_spread * z) with a standard
    normal z that is its own for the whole run, times exp(jitter * z) with a z of the round (log-normal speeds, as
    measured on phones by Lai et al. 2022, FedScale).

    Attributes:
        dropout: Chance that a chosen client leaves before it answers.
        seconds_per_example: Time of the median device for an example in a round, all epochs together.
        latency_seconds: Time of the median device for download and upload.
        speed_spread: Standard deviation of the logarithm of speed between devices.
        jitter: Standard deviation of the logarithm of a device's speed between rounds.
        deadline_seconds: A round goes on without those who take longer; None waits for the slowest.
        day_seconds: Length of a virtual day.
        online_share: Share of each day that a device is online, from a time of day of its own on.
    """

    dropout: float = 0.0
    seconds_per_example: float = 0.1
    latency_seconds: float = 1.0
    speed_spread: float = 0.0
    jitter: float = 0.0
    deadline_seconds: float | None = None
    day_seconds: float = 86400.0
    online_share: float = 1.0

    def __post_init__(self) -> None:
        within(0, 1, dropout=self.dropout, online_share=self.online_share)
        above(0, online_share=self.online_share, deadline_seconds=self.deadline_seconds, day_seconds=self.day_seconds)
        for name in ("seconds_per_example", "latency_seconds", "speed_spread", "jitter"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    @property
    def idle_seconds(self) -> float:
        """An hour of a virtual day."""
        return self.day_seconds / 24

    def online(self, seed: int, partition: int, now: float) -> bool:
        """Return whether `now` lies in the device's part of the day."""
        if self.online_share == 1:
            return True
        begins = generator(seed, "availability", "day", partition).random()
        return (now / self.day_seconds - begins) % 1.0 < self.online_share

    def seconds(self, seed: int, partition: int, round_number: int, num_examples: int) -> float | None:
        """Return how long the device takes, or None when it leaves."""
        rng = generator(seed, "availability", "round", partition, round_number)
        leaves, of_the_round = rng.random() < self.dropout, rng.standard_normal()
        if leaves:
            return None
        own = generator(seed, "availability", "speed", partition).standard_normal()
        work = self.latency_seconds + self.seconds_per_example * num_examples
        return float(work * math.exp(self.speed_spread * own + self.jitter * of_the_round))


@dataclass(frozen=True, slots=True)
class Attendance:
    """What becomes of a cohort.

    Attributes:
        present: Partitions that answer in time, in the order of the cohort.
        absent: Why each of the others does not, by partition.
        seconds: Virtual time of the round.
    """

    present: tuple[int, ...]
    absent: dict[int, str]
    seconds: float


def attend(
    availability: Availability, seed: int, round_number: int, cohort: list[int], num_examples: list[int]
) -> Attendance:
    """Return who of `cohort` answers in a round, and how long the round takes on the virtual clock.

    A server does not hear of those who leave: with a deadline it waits that long for them, without one until the last
    of the others has answered.
    """
    deadline = math.inf if availability.deadline_seconds is None else availability.deadline_seconds
    present, absent, slowest = [], {}, 0.0
    for partition, examples in zip(cohort, num_examples, strict=True):
        seconds = availability.seconds(seed, partition, round_number, examples)
        if seconds is None:
            absent[partition] = "left before it answered"
        elif seconds > deadline:
            absent[partition] = f"late: {seconds:.4g} s, the deadline is {deadline:.4g} s"
        else:
            present.append(partition)
            slowest = max(slowest, seconds)
    if absent and deadline < math.inf:
        return Attendance(tuple(present), absent, deadline)
    return Attendance(tuple(present), absent, slowest if present else availability.idle_seconds)
