"""Devices on a virtual clock: shares and times that can be computed by hand, and rounds that follow from them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_runs import TINY, result

from fedssl.simulation.availability import VirtualDevices, attend
from simulate import main


def test_devices_without_spread_take_latency_and_time_by_example() -> None:
    devices = VirtualDevices(latency_seconds=2.0, seconds_per_example=0.5)
    assert devices.seconds(0, 3, 1, 10) == 7.0


def test_a_device_leaves_as_often_as_its_dropout_says() -> None:
    devices = VirtualDevices(dropout=0.3)
    left = sum(devices.seconds(0, partition, number, 1) is None for partition in range(200) for number in range(50))
    assert left / 10_000 == pytest.approx(0.3, abs=3 * math.sqrt(0.21 / 10_000))


def test_speeds_are_log_normal_between_devices_and_a_device_keeps_its_own() -> None:
    devices = VirtualDevices(latency_seconds=1.0, seconds_per_example=0.0, speed_spread=0.8)
    logs = np.log([[devices.seconds(0, partition, number, 5) for number in (1, 2)] for partition in range(2000)])
    assert logs[:, 0] == pytest.approx(logs[:, 1])
    assert logs[:, 0].mean() == pytest.approx(0.0, abs=3 * 0.8 / math.sqrt(2000))
    assert logs[:, 0].std() == pytest.approx(0.8, rel=0.05)


def test_a_device_is_online_for_its_share_of_every_day_in_one_piece() -> None:
    devices = VirtualDevices(online_share=0.25, day_seconds=100.0)
    hours = np.array([[devices.online(0, partition, now) for now in range(100)] for partition in range(20)])
    assert hours.mean(axis=1) == pytest.approx(0.25, abs=0.011)
    assert (np.abs(np.diff(hours.astype(int), axis=1)).sum(axis=1) <= 2).all()
    assert [devices.online(0, 7, now) for now in range(100)] == [devices.online(0, 7, now + 300) for now in range(100)]


class Fixed:
    """Partition k takes k seconds; partition 3 leaves."""

    idle_seconds = 60.0

    def __init__(self, deadline: float | None) -> None:
        self.deadline_seconds = deadline

    def online(self, seed: int, partition: int, now: float) -> bool:
        return True

    def seconds(self, seed: int, partition: int, round_number: int, num_examples: int) -> float | None:
        return None if partition == 3 else float(partition)


@pytest.mark.parametrize(
    ("cohort", "deadline", "present", "absent", "seconds"),
    [
        ([5, 1, 2], None, (5, 1, 2), [], 5.0),  # the slowest ends the round
        ([5, 1, 2], 4.0, (1, 2), [5], 4.0),  # the deadline ends it
        ([5, 1, 2], 9.0, (5, 1, 2), [], 5.0),  # nobody is late
        ([3, 1], None, (1,), [3], 1.0),  # who left is not waited for
        ([3, 1], 4.0, (1,), [3], 4.0),  # who left is waited for until the deadline
        ([3], None, (), [3], 60.0),
        ([], None, (), [], 60.0),  # nobody is online: time passes all the same
    ],
)
def test_a_round_takes_as_long_as_its_slowest_client_or_its_deadline(
    cohort: list[int], deadline: float | None, present: tuple[int, ...], absent: list[int], seconds: float
) -> None:
    attendance = attend(Fixed(deadline), 0, 1, cohort, [1] * len(cohort))
    assert attendance.present == present
    assert list(attendance.absent) == absent
    assert attendance.seconds == seconds


@pytest.mark.parametrize(
    "words",
    [
        ["availability=dropout", "availability.dropout=0.5"],
        ["availability=stragglers", "availability.deadline_seconds=1.7"],
        ["availability=diurnal", "availability.online_share=0.4"],
    ],
)
def test_a_run_tells_who_was_absent_and_what_the_clock_says(words: list[str], tmp_path: Path) -> None:
    assert main([*TINY, "cohort=4", "rounds=6", "engine=local", "evaluate_every=6", f"run_dir={tmp_path}", *words]) == 0
    records = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert all(not set(record["clients"]) & {one["partition"] for one in record["absent"]} for record in records)
    assert any(len(record["clients"]) < 4 for record in records)
    assert all(record["virtual_seconds"] > 0 for record in records)
    total = result(tmp_path)["virtual_seconds"]
    assert total == pytest.approx(sum(record["virtual_seconds"] for record in records))
    assert "virtual" in (tmp_path / "report.html").read_text()


def test_a_quorum_holds_for_those_who_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["availability=dropout", "availability.dropout=1.0", "quorum=1"]
    assert main([*TINY, "engine=local", f"run_dir={tmp_path}", *words]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("failed: round 1: 0 clients are available, quorum=1 (3 absent)")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("dropout=1.5", "must be between 0 and 1"),
        ("online_share=0", "must be above 0"),
        ("jitter=-1", "must be 0 or more"),
        ("deadline_seconds=0", "must be above 0"),
    ],
)
def test_a_model_out_of_range_gets_one_line(setting: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "engine=local", "availability=stragglers", f"availability.{setting}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"availability.{setting.split('=')[0]}=")
    assert text in line
