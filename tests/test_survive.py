"""Real runs lose a worker and their driver to SIGKILL, and end with the bits of an undisturbed run."""

from pathlib import Path

from benchmarks.survive import disturb


def test_a_run_that_lost_a_worker_and_one_that_lost_its_driver_end_with_the_same_bits(tmp_path: Path) -> None:
    ends = disturb(workers=1, drivers=1, seed=1, folder=tmp_path)
    assert [(kind, same) for kind, same, _ in ends] == [("worker", [True]), ("driver", [True])]
