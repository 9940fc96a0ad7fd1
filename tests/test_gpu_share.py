"""How many workers share a GPU follows from what one client was measured to need."""

from pathlib import Path

import pytest
from test_runs import TINY

from fedssl.simulation.gpu_share import GpuUse, workers_per_gpu
from simulate import main

GIB = 2**30


@pytest.mark.parametrize(
    ("peak", "most", "workers"),
    [
        (7 * GIB, 16, 10),
        (7 * GIB, 4, 4),
        (80 * GIB, 16, 1),
        (70 * GIB, 16, 1),
        (38 * GIB, 16, 2),
    ],  # 76 of 80 GiB are used
)
def test_as_many_workers_as_fit_in_95_percent_of_the_memory_and_never_none(peak: int, most: int, workers: int) -> None:
    assert workers_per_gpu(GpuUse(peak, 80 * GIB, 1.0), most) == workers


def test_auto_needs_workers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "engine=local", "engine.num_gpus_per_client=auto"]) == 2
    expected = "engine.num_gpus_per_client=auto: must be a number with engine=local"
    assert capsys.readouterr().err.strip() == expected


def test_a_machine_without_a_gpu_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["engine=ray", "engine.num_workers=1", "engine.num_gpus_per_client=auto", f"run_dir={tmp_path / 'run'}"]
    assert main([*TINY, *words]) == 2
    assert "engine.num_gpus_per_client=auto" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
