"""Attacks that are taught on runs with other coins, on encoders that were trained for long on few images."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from test_audit_runs import SETTINGS, write_run

from fedssl.compose import load
from fedssl.config import RunConfig, build
from fedssl.models import bundle
from fedssl.privacy.audit.__main__ import main
from fedssl.privacy.audit.attack import attack
from fedssl.privacy.audit.shadows import Shadow, Taught, taught
from fedssl.training.loop import Examples, Schedule, Stream, fit
from fedssl.workspace import open_workspace

ATTACKS = ["EncoderMI-T", "EncoderMI-V", "EncoderMI-S", "LiRA online", "LiRA offline"]
COINS = ("canaries.fraction=0.9",)
EPOCHS = 40
SHADOWS = {f"{coins}{flipped}": (f"canaries.coins={coins}", f"canaries.flipped={flipped}")
           for coins in (1, 2) for flipped in ("false", "true")}  # fmt: skip


def config(*words: str) -> RunConfig:
    return load([*SETTINGS, *COINS, *words])


def train(chosen: RunConfig, epochs: int) -> dict[str, np.ndarray]:
    """Return the encoder after `epochs` on what all clients hold, as if it were one client's."""
    workspace = open_workspace(chosen)
    bundle.load(workspace.model, workspace.initial)
    indices = np.concatenate([workspace.indices(client) for client in range(workspace.num_clients)])
    examples = Examples(workspace.splits.train, indices, build(chosen, "augmentation"))
    how = (build(load([*SETTINGS, "optimizer=adamw"]), "client").optimizer, Schedule(epochs, 32, 1.0, 0.0))
    fit(workspace.model, workspace.objective, examples, *how, Stream(0, 0, 1))
    return bundle.group(bundle.arrays(workspace.model, None), "backbone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, two pairs of shadows with turned coins, and runs that are none."""
    path = tmp_path_factory.mktemp("shadows")
    encoder = train(config(), EPOCHS)
    write_run(path / "run", config(), encoder, None)
    for name, words in SHADOWS.items():
        write_run(path / name, config(*words), train(config(*words), EPOCHS), None)
    write_run(path / "flipped", config("canaries.flipped=true"), encoder, None)
    write_run(path / "same", config("canaries.coins=0", "seed=1"), encoder, None)
    write_run(path / "longer", config("canaries.coins=1", "rounds=11"), encoder, None)
    return path


def features(included: np.ndarray, seed: int) -> np.ndarray:
    """Ten views of each canary, closer together where it was trained on, on top of how easy each canary is."""
    easy = np.random.default_rng(0).uniform(0.5, 1.5, size=len(included))
    rng = np.random.default_rng(seed)
    spread = easy * np.where(included, 0.3, 0.4)
    return rng.normal(size=(len(included), 1, 8)) + spread[:, None, None] * rng.normal(size=(len(included), 10, 8))


def shadows(number: int, pairs: int) -> list[Shadow]:
    found = []
    for pair in range(pairs):
        heads = np.random.default_rng(100 + pair).random(number) < 0.5
        for turned in (False, True):
            coins = heads != turned
            found.append(Shadow(np.arange(number), coins, features(coins, 10 * pair + turned + 1)))
    return found


def test_lira_takes_out_how_easy_a_canary_is() -> None:
    included = np.random.default_rng(5).random(200) < 0.5
    found = taught(np.arange(200), features(included, 99), shadows(200, 4))
    assert list(found) == ATTACKS
    auc = {name: attack(each.scores[included], each.scores[~included], num_resamples=1).auc
           for name, each in found.items()}  # fmt: skip
    assert min(auc.values()) > 0.6
    assert auc["LiRA online"] > auc["EncoderMI-T"] + 0.05
    accuracies = {name: each.accuracy(included) for name, each in found.items()}
    assert accuracies.pop("LiRA offline") is None
    assert min(accuracies.values()) > 0.55


def test_there_is_no_lira_where_a_canary_is_in_fewer_than_two_shadows() -> None:
    included = np.random.default_rng(5).random(60) < 0.5
    known = shadows(60, 2)
    assert list(taught(np.arange(60), features(included, 99), known)) == ATTACKS
    assert list(taught(np.arange(60), features(included, 99), known[:3])) == ATTACKS[:3]
    others = [dataclasses.replace(shadow, indices=shadow.indices + 1) for shadow in known]
    assert list(taught(np.arange(60), features(included, 99), others)) == ATTACKS[:3]


def test_a_threshold_is_right_as_often_as_counted_by_hand() -> None:
    each = Taught(np.array([3.0, 1.0, 2.0, 0.0, 0.0]), 2.0)
    assert each.accuracy(np.array([True, True, False, False, False])) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_shadows_with_too_few_canaries_teach_nothing() -> None:
    coins = np.ones(30, np.bool_)
    with pytest.raises(ValueError, match="at least 20 canaries, some in and some out, got 30 in and 0 out"):
        taught(np.arange(30), features(coins, 0), [Shadow(np.arange(30), coins, features(coins, 0))])


def test_shadows_flip_other_coins_for_the_same_canaries() -> None:
    own, first, turned = (
        open_workspace(config(*words)).canaries for words in ((), SHADOWS["1false"], SHADOWS["1true"])
    )
    assert (own.indices == first.indices).all()
    assert 0.3 < (own.included == first.included).mean() < 0.7
    assert (first.included == ~turned.included).all()
    again = open_workspace(config("canaries.coins=0")).canaries  # what null comes to
    assert (own.included == again.included).all()


def test_an_overtrained_run_is_recognised_by_what_its_shadows_teach(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for name in SHADOWS for word in ("--shadow", str(folder / name))]
    assert main([str(folder / "run"), *words]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ATTACKS)
    written = json.loads((folder / "run" / "audit.json").read_text())
    attacks = written["attacks"]
    assert list(attacks) == ["alignment", "alignment gained", *ATTACKS]
    assert min(attacks[name]["auc"] for name in ATTACKS) > 0.8
    assert min(attacks[name]["accuracy"] for name in ATTACKS[:4]) > 0.7
    assert "accuracy" not in attacks["LiRA offline"]
    assert max(each["correct"] for each in attacks.values()) >= 34  # of 38
    assert written["claims"][0]["lower"]["0.95"] > 0.5


def test_one_shadow_is_enough_for_all_but_lira(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "run"), "--shadow", str(folder / "2true"), "--views", "4", "--out", "one.json"]) == 0
    assert "no LiRA" in " ".join(capsys.readouterr().out.split())
    attacks = json.loads((folder / "run" / "one.json").read_text())["attacks"]
    assert list(attacks) == ["alignment", "alignment gained", *ATTACKS[:3]]


@pytest.mark.parametrize(
    ("shadow", "text"),
    [
        (
            "flipped",
            "has the coins of {folder}/run, or all of them turned, and knows the answer; train it with another",
        ),
        ("same", "has the coins of {folder}/run, or all of them turned, and knows the answer"),
        (
            "longer",
            "must differ from {folder}/run in canaries.coins, canaries.flipped, seed alone, got rounds: 10 -> 11",
        ),
        ("nowhere", "nowhere: is not the directory of a finished run, it has no config.yaml"),
    ],
)
def test_what_is_no_shadow_is_refused_in_one_line(
    folder: Path, shadow: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder / "run"), "--shadow", str(folder / shadow)]) == 2
    captured = capsys.readouterr()
    assert text.format(folder=folder) in captured.err
    assert captured.err.count("\n") == 1
