"""Who took part in a round of a small federation, guessed from the global models that it kept."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedssl.privacy.audit.__main__ import main
from fedssl.privacy.audit.clients import shares
from simulate import main as simulate

TINY = (
    "experiment=quickstart_images", "engine=local", "objective=rotnet", "model.norm=group", "model.width=4",
    "height=8", "width=8", "partition=iid", "partition.num_clients=6", "data.test_fraction=0.9", "evaluation=none",
    "client.epochs=1", "rounds=4", "cohort=3", "checkpoint.keep=4",
)  # fmt: skip
OWN, ALL = "its examples known", "all examples known"
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns the directory of a run with more settings, which is run once."""
    folder, made = tmp_path_factory.mktemp("rounds"), {}

    def make(*words: str) -> Path:
        if words not in made:
            path = folder / str(len(made))
            assert simulate([*TINY, *words, f"run_dir={path}"]) == 0
            made[words] = path
        return made[words]

    return make


def audited(path: Path) -> dict:
    assert main([str(path), "--clients"]) == 0
    return json.loads((path / "audit.json").read_text())["participation"]


def test_the_shares_of_a_weighted_sum_are_its_weights_times_the_lengths() -> None:
    rng = np.random.default_rng(0)
    updates = rng.normal(size=(5, 300)) + 3 * rng.normal(size=300)  # what all learn, and what each does
    weights = np.array([0.5, 0.0, 0.25, 0.25, 0.0])
    assert shares(weights @ updates, updates) == pytest.approx(weights * np.linalg.norm(updates, axis=1))
    assert shares(updates[0], updates[:1]) == pytest.approx([np.linalg.norm(updates[0])])
    assert shares(updates[0], np.zeros((2, 300))) == pytest.approx([0, 0])  # whoever learns nothing
    with pytest.raises(ValueError, match=r"must be \[dim\] and \[clients, dim\], got \[300\] and \[5, 200\]"):
        shares(updates[0], updates[:, :200])


def test_without_noise_the_global_models_tell_who_took_part(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = audited(run())
    assert (found["rounds"], found["client_rounds"], sum(found["included"])) == ([1, 2, 3, 4], 24, 12)
    assert found["attacks"][ALL]["auc"] == 1.0
    assert found["attacks"][ALL]["tpr_at"] == {"0.001": 1.0, "0.01": 1.0}
    assert found["attacks"][OWN]["auc"] > 0.5
    assert len(found["attacks"][OWN]["scores"]) == 24
    assert found["sources"]["num_clients"] == 6
    assert 0 <= found["sources"]["accuracy"] <= 1
    shown = capsys.readouterr().out
    assert "who took part" in shown
    assert "who has an example" in shown
    assert "right guesses" not in shown  # the run has no canaries
    assert not (run() / "audit.png").exists()


def test_under_much_noise_they_do_not(run: Run) -> None:
    noise = ("privacy=client", "privacy.noise_multiplier=20", "strategy.weights=equal", "rounds=6", "checkpoint.keep=6")
    found = audited(run(*noise))
    for name in (OWN, ALL):
        low, high = found["attacks"][name]["auc_interval"]
        assert low < 0.5 < high


def test_models_of_the_last_rounds_alone_are_enough_for_the_round_between_them(run: Run) -> None:
    found = audited(run("checkpoint.keep=2"))
    assert found["rounds"] == [4]
    assert found["client_rounds"] == 6


def test_what_canaries_tell_is_still_told(run: Run) -> None:
    path = run("canaries.fraction=0.5")
    assert main([str(path), "--clients", "--views", "2"]) == 0
    written = json.loads((path / "audit.json").read_text())
    assert set(written["attacks"]) == {"alignment", "alignment gained"}
    assert written["participation"]["attacks"][ALL]["auc"] == 1.0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("checkpoint.every=null",), "no models of two rounds that follow each other; run with checkpoint.every=1"),
        (("checkpoint.every=4",), "checkpoints: has no models of two rounds that follow each other"),
        (("cohort=null", "rounds=1"), "cohort=null: every client is in every round, so there is nothing to guess"),
        (
            ("client=scaffold", "strategy=scaffold", "rounds=1"),
            "client=Scaffold: client 0 cannot be trained again from the global model of round 0 alone",
        ),
    ],
)
def test_what_cannot_be_guessed_is_one_line(
    run: Run, words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(*words)
    capsys.readouterr()
    assert main([str(path), "--clients"]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
