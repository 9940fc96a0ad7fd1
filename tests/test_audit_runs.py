"""The audit of finished runs, on an encoder that was trained for long on 59 images and on its twin."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedssl.compose import load
from fedssl.config import RunConfig, build
from fedssl.errors import ConfigError
from fedssl.models import bundle
from fedssl.privacy.audit.__main__ import main
from fedssl.privacy.audit.run import RunAudit, audit_run
from fedssl.privacy.canaries import Canaries
from fedssl.report.records import RunResult
from fedssl.report.rundir import RunDirectory
from fedssl.training.loop import Examples, Schedule, Stream, fit
from fedssl.workspace import open_workspace

SETTINGS = (
    "experiment=quickstart_images",
    "objective=vicreg",
    "augmentation.full.crop_scale=[0.95,1.0]",
    "height=8",
    "width=8",
    "engine=local",
    "partition=iid",
    "data.test_fraction=0.94",
)
NUM_CANARIES = 97  # nine tenths of each of 28, 27, 27 and 27, rounded down
NUM_SHARED = 12
EPOCHS = 180
STATEMENT = {"unit": "example", "mechanism": "dp_sgd", "epsilon": 1.0, "delta": 1e-5, "adjacency": "add_remove"}
CONFIG = load([*SETTINGS, "canaries.fraction=0.9"])
FLIPPED = load([*SETTINGS, "canaries.fraction=0.9", "canaries.flipped=true"])


def train(config: RunConfig) -> dict[str, np.ndarray]:
    """Return the encoder after far too many epochs on what all clients hold, as if it were one client's."""
    workspace = open_workspace(config)
    bundle.load(workspace.model, workspace.initial)
    indices = np.concatenate([workspace.indices(client) for client in range(workspace.num_clients)])
    examples = Examples(workspace.splits.train, indices, build(config, "augmentation"))
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
    plain = load([*SETTINGS])
    begun = bundle.group(open_workspace(plain).initial, "backbone")
    encoder = train(CONFIG)
    write_run(path / "run", CONFIG, encoder, [STATEMENT])
    write_run(path / "twin", FLIPPED, train(FLIPPED), None)
    write_run(path / "same", FLIPPED, encoder, None)
    write_run(path / "untrained", CONFIG, begun, [STATEMENT])
    write_run(path / "plain", plain, begun, None)
    return path


@pytest.fixture(scope="module")
def canaries() -> Canaries:
    return open_workspace(CONFIG).canaries


@pytest.fixture(scope="module")
def audited(folder: Path) -> RunAudit:
    return audit_run(folder / "run", folder / "twin")


def test_an_encoder_that_saw_59_images_for_long_betrays_them(audited: RunAudit) -> None:
    assert audited.attacks["alignment"].auc > 0.9
    assert audited.attacks["alignment"].interval[0] > 0.85
    assert audited.guesses.num_guesses == 2 * (NUM_CANARIES // 5)
    assert audited.guesses.correct["alignment"] >= 36


def test_guesses_that_are_right_refute_a_guarantee_that_is_too_strong(audited: RunAudit) -> None:
    (claim,) = audited.claims
    assert (claim.mechanism, claim.epsilon, claim.delta) == ("dp_sgd", 1.0, 1e-5)
    assert claim.lower[0.95] > claim.lower[0.99] > 1.0
    assert audited.violated


def test_what_each_twin_alone_saw_stands_out_on_its_own_side(audited: RunAudit, canaries: Canaries) -> None:
    found = audited.memorisation
    sizes = {name: len(each.raw) for name, each in found.items()}
    num_in = int(canaries.included.sum())
    assert sizes == {"candidate": num_in, "independent": NUM_CANARIES - num_in, "shared": NUM_SHARED, "external": 1688}
    assert found["candidate"].mean > found["shared"].mean > found["independent"].mean
    assert found["candidate"].ks_p_value < 1e-6


def test_the_last_stage_memorises_what_the_encoder_does(audited: RunAudit) -> None:
    assert list(audited.layers) == ["0", "1", "2", "3"]
    last = audited.layers["3"]
    assert last.candidate == pytest.approx(audited.memorisation["candidate"].mean, abs=1e-6)
    assert last.independent == pytest.approx(audited.memorisation["independent"].mean, abs=1e-6)
    assert sum(layer.increase for layer in audited.layers.values()) == pytest.approx(last.candidate)


def test_a_run_that_is_its_own_twin_memorises_nothing(folder: Path) -> None:
    found = audit_run(folder / "run", folder / "same", num_views=3, max_examples=40)
    assert found.memorisation.keys() == {"candidate", "independent", "shared", "external"}
    assert all((each.raw == 0).all() for each in found.memorisation.values())
    assert all((each.candidate, each.independent) == (0, 0) for each in found.layers.values())


def test_an_encoder_that_never_moved_tells_nothing(folder: Path) -> None:
    found = audit_run(folder / "untrained", num_views=4)
    assert (found.scores["alignment gained"] == 0).all()
    assert found.attacks["alignment gained"].auc == 0.5
    assert found.claims[0].lower[0.99] == 0
    assert not found.violated
    assert not found.memorisation
    assert not found.layers


def test_the_same_seed_draws_the_same_views_and_fewer_canaries_are_some_of_them(
    folder: Path, canaries: Canaries
) -> None:
    first, second = (audit_run(folder / "run", num_views=3, seed=5) for _ in range(2))
    assert (first.scores["alignment"] == second.scores["alignment"]).all()
    assert (first.scores["alignment"] != audit_run(folder / "run", num_views=3, seed=6).scores["alignment"]).any()
    few = audit_run(folder / "run", num_views=3, max_examples=30, seed=5)
    places = np.searchsorted(canaries.indices, few.indices)
    assert len(few.indices) == 30
    assert (few.included == canaries.included[places]).all()
    assert few.scores["alignment"] == pytest.approx(first.scores["alignment"][places], abs=1e-6)


def test_the_tables_the_file_and_the_picture_tell_the_bounds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run"
    assert main([str(run), "--twin", str(folder / "twin")]) == 3
    shown = capsys.readouterr().out
    assert "violated" in shown
    assert "candidate" in shown
    written = json.loads((run / "audit.json").read_text())
    assert written["violated"]
    assert written["claims"][0]["epsilon"] == 1.0
    assert set(written["claims"][0]["lower"]) == {"0.95", "0.99"}
    assert len(written["canaries"]["included"]) == len(written["attacks"]["alignment"]["scores"]) == NUM_CANARIES
    assert len(written["sslmem"]["external"]["raw"]) == 1688
    assert set(written["layers"]["3"]) == {"candidate", "independent", "increase"}
    assert (run / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob(".*"))


def test_a_run_whose_guarantee_is_not_refuted_ends_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "untrained"), "--views", "2", "--out", "second.json"]) == 0
    assert "not refuted" in capsys.readouterr().out
    assert (folder / "untrained" / "second.png").is_file()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["plain"], "canaries.fraction=0: the run has no canaries, so there is nothing to guess; train with some"),
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
