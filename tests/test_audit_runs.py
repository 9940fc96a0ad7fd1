"""The audit of finished runs, on an encoder that was trained for long on 64 images and on its twin."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fedssl.config import RunConfig, build, load
from fedssl.errors import ConfigError
from fedssl.models import bundle
from fedssl.privacy.audit.__main__ import main
from fedssl.privacy.audit.run import RunAudit, audit_run
from fedssl.report.records import RunResult
from fedssl.report.rundir import RunDirectory
from fedssl.training.loop import Examples, Schedule, Stream, fit
from fedssl.workspace import Workspace, open_workspace

SETTINGS = (
    "experiment=quickstart_images",
    "objective=vicreg",
    "augmentation.full.crop_scale=[0.95,1.0]",
    "height=8",
    "width=8",
    "engine=local",
)
NUM_CANARIES = 96
EPOCHS = 180
NUM_SHARED = 16
STATEMENT = {"unit": "example", "mechanism": "dp_sgd", "epsilon": 1.0, "delta": 1e-5, "adjacency": "add_remove"}


@dataclass(frozen=True)
class Coins:
    """Which training examples are canaries, and how their coins fell."""

    indices: np.ndarray
    included: np.ndarray


CHOSEN = np.random.default_rng(1).permutation(1437)[: NUM_CANARIES + NUM_SHARED]
SHARED = np.sort(CHOSEN[NUM_CANARIES:])
COINS = Coins(np.sort(CHOSEN[:NUM_CANARIES]), np.random.default_rng(0).random(NUM_CANARIES) < 0.5)


def trained_on(flipped: bool) -> np.ndarray:
    return np.concatenate((COINS.indices[COINS.included ^ flipped], SHARED))


def with_coins(config: RunConfig, flipped: bool) -> RunConfig:
    text = f"{config.text}canaries:\n  fraction: 0.1\n  flipped: {str(flipped).lower()}\n  seed: 0\n"
    return dataclasses.replace(config, text=text)


def train(config: RunConfig, flipped: bool) -> dict[str, np.ndarray]:
    """Return the encoder after far too many epochs on 64 images."""
    workspace = open_workspace(config)
    bundle.load(workspace.model, workspace.initial)
    examples = Examples(workspace.splits.train, trained_on(flipped), build(config, "augmentation"))
    schedule = Schedule(EPOCHS, 32, 1.0, 0.0)
    fit(workspace.model, workspace.objective, examples, optimizer, schedule, Stream(0, 0, 1))
    return bundle.group(bundle.arrays(workspace.model, None), "backbone")


def optimizer(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=3e-3)


def write_run(path: Path, config: RunConfig, encoder: dict[str, np.ndarray], privacy: list | None) -> Path:
    directory = RunDirectory.create(path, config.text)
    directory.write_tensors(encoder, "encoder.safetensors")
    fields = {field.name: 0 for field in dataclasses.fields(RunResult)} | {"status": "completed", "privacy": privacy}
    directory.write_result(RunResult(**fields))
    directory.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its twin, a run that never moved, and one without canaries."""
    path = tmp_path_factory.mktemp("runs")
    config = load([*SETTINGS])
    begun = bundle.group(open_workspace(config).initial, "backbone")
    first, second = (with_coins(config, flipped) for flipped in (False, True))
    encoder = train(config, flipped=False)
    write_run(path / "run", first, encoder, [STATEMENT])
    write_run(path / "twin", second, train(config, flipped=True), None)
    write_run(path / "same", second, encoder, None)
    write_run(path / "untrained", first, begun, [STATEMENT])
    write_run(path / "plain", config, begun, None)
    return path


@pytest.fixture(scope="module", autouse=True)
def coins() -> Iterator[None]:
    def canaries(workspace: Workspace) -> Coins | None:
        return COINS if "canaries:" in workspace.config.text else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "canaries", property(canaries), raising=False)
        patch.setattr(Workspace, "indices", lambda workspace, client: trained_on(False) if client == 0 else SHARED)
        yield


@pytest.fixture(scope="module")
def audited(folder: Path, coins: None) -> RunAudit:
    return audit_run(folder / "run", folder / "twin")


def test_an_encoder_that_saw_64_images_for_long_betrays_them(audited: RunAudit) -> None:
    assert audited.attacks["alignment"].auc > 0.9
    assert audited.attacks["alignment"].interval[0] > 0.85
    assert audited.guesses.num_guesses == 2 * (NUM_CANARIES // 5)
    assert audited.guesses.correct["alignment"] >= 36


def test_guesses_that_are_right_refute_a_guarantee_that_is_too_strong(audited: RunAudit) -> None:
    (claim,) = audited.claims
    assert (claim.unit, claim.epsilon, claim.delta) == ("example", 1.0, 1e-5)
    assert claim.lower[0.95] > claim.lower[0.99] > 1.0
    assert audited.violated


def test_what_each_twin_alone_saw_stands_out_on_its_own_side(audited: RunAudit) -> None:
    found = audited.memorisation
    sizes = {name: len(each.raw) for name, each in found.items()}
    num_in = int(COINS.included.sum())
    assert sizes == {"candidate": num_in, "independent": NUM_CANARIES - num_in, "shared": NUM_SHARED, "external": 359}
    assert found["candidate"].mean > found["shared"].mean > found["independent"].mean
    assert found["candidate"].ks_p_value < 1e-6


def test_a_run_that_is_its_own_twin_memorises_nothing(folder: Path) -> None:
    found = audit_run(folder / "run", folder / "same", num_views=3, max_examples=40)
    assert found.memorisation.keys() == {"candidate", "independent", "shared", "external"}
    assert all((each.raw == 0).all() for each in found.memorisation.values())


def test_an_encoder_that_never_moved_tells_nothing(folder: Path) -> None:
    found = audit_run(folder / "untrained", num_views=4)
    assert (found.scores["alignment gained"] == 0).all()
    assert found.attacks["alignment gained"].auc == 0.5
    assert found.claims[0].lower[0.99] == 0
    assert not found.violated
    assert not found.memorisation


def test_the_same_seed_draws_the_same_views_and_fewer_canaries_are_some_of_them(folder: Path) -> None:
    first, second = (audit_run(folder / "run", num_views=3, seed=5) for _ in range(2))
    assert (first.scores["alignment"] == second.scores["alignment"]).all()
    assert (first.scores["alignment"] != audit_run(folder / "run", num_views=3, seed=6).scores["alignment"]).any()
    few = audit_run(folder / "run", num_views=3, max_examples=30, seed=5)
    places = np.searchsorted(COINS.indices, few.indices)
    assert len(few.indices) == 30
    assert (few.included == COINS.included[places]).all()
    assert few.scores["alignment"] == pytest.approx(first.scores["alignment"][places], abs=1e-6)


def test_the_tables_the_file_and_the_picture_tell_the_bounds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run"
    assert main([str(run), "--twin", str(folder / "twin"), "--views", "4"]) == 3
    shown = capsys.readouterr().out
    assert "violated" in shown
    assert "candidate" in shown
    written = json.loads((run / "audit.json").read_text())
    assert written["violated"]
    assert written["claims"][0]["epsilon"] == 1.0
    assert set(written["claims"][0]["lower"]) == {"0.95", "0.99"}
    assert len(written["canaries"]["included"]) == len(written["attacks"]["alignment"]["scores"]) == NUM_CANARIES
    assert len(written["sslmem"]["external"]["raw"]) == 359
    assert (run / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob(".*"))


def test_a_run_whose_guarantee_is_not_refuted_ends_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "untrained"), "--views", "2", "--out", "second.json"]) == 0
    assert "not refuted" in capsys.readouterr().out
    assert (folder / "untrained" / "second.png").is_file()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["plain"], "config.yaml: has no canaries, so there is nothing to guess"),
        (["nowhere"], "nowhere: is not the directory of a finished run, it has no config.yaml"),
        (["run", "--twin", "untrained"], "must differ from {folder}/run in canaries.flipped alone, got nothing"),
        (["run", "--views", "1"], "num_views must be at least 2, got 1"),
        (["run", "--out", "a/b.json"], "name must be a plain file name, got 'a/b.json'"),
    ],
)
def test_bad_input_is_one_line(folder: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(folder / word) if word in ("plain", "nowhere", "run", "untrained") else word for word in words]
    assert main(paths) == 2
    captured = capsys.readouterr()
    assert text.format(folder=folder) in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_a_run_that_has_not_ended_is_not_audited(folder: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "encoder.safetensors"):
        (tmp_path / name).write_bytes((folder / "run" / name).read_bytes())
    with pytest.raises(ConfigError, match=r"is not the directory of a finished run, it has no result\.json"):
        audit_run(tmp_path)
