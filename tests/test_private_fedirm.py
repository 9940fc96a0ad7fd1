"""FedIRM under client-level privacy: its loss is one like any other, its exchange of relations is not noised."""

from pathlib import Path

import pytest
from test_private_runs import CLIENT, NOISE, TINY, ran, rounds

from simulate import main

FEDIRM = ("objective=fedirm", "augmentation=semi")


@pytest.mark.parametrize("procedure", ["fedirm", "local_training"])
def test_relations_of_classes_are_not_exchanged_in_private(
    procedure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, *FEDIRM, "privacy=client", NOISE, "strategy=fedirm", f"client={procedure}"]
    assert main([*words, f"run_dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.strip() == (
        "strategy=ClassMeans: needs arrays beside the model, which nobody noises; use strategy=fedavg, fedavgm or "
        "fedadam [PRIV-STATE]"
    )
    assert not (tmp_path / "run").exists()


def test_the_loss_alone_trains_in_private(tmp_path: Path) -> None:
    ended = ran(tmp_path / "run", *CLIENT, *FEDIRM)
    assert ended["failures"] == 0
    assert [one["clients"] for one in rounds(tmp_path / "run")] == [[0, 1, 2, 3]] * 2
    (statement, *_) = ended["privacy"]
    assert (statement["unit"], statement["num_releases"]) == ("client", 2)


def test_a_procedure_that_fails_everywhere_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Failures count as zero, but a model of noise alone is no result of a wrong setting."""
    assert main([*TINY, *CLIENT, *FEDIRM, "client=fedirm", f"run_dir={tmp_path / 'run'}"]) == 3
    assert "client=fedirm needs strategy=fedirm: the server sent no relation matrix (4 of 4 clients failed" in (
        capsys.readouterr().err
    )
