"""Images that come back from the gradient of a step, and that do not where a mechanism noises it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_audit_runs import write_run
from torch import Tensor, nn

from fedssl.compose import load
from fedssl.errors import ConfigError
from fedssl.models import bundle
from fedssl.models.encoder import Encoder
from fedssl.privacy.audit.__main__ import main
from fedssl.privacy.audit.recovery import recover
from fedssl.privacy.audit.released import PLAIN, OneStep, gradients
from fedssl.seeding import torch_stream
from fedssl.training.loop import Examples, Stream, make_batch
from fedssl.workspace import Workspace

SMALL = (
    "experiment=quickstart_images", "engine=local", "partition=iid", "height=8", "width=8", "model.norm=group",
    "model.width=4", "data.test_fraction=0.9",
)  # fmt: skip
SETTINGS = (*SMALL, "objective=supervised", "objective.view=clean")
CONTRASTIVE = (*SMALL, "objective=simclr", "objective.norm=group")


class Pixels(Encoder):
    """The pixels of an image are its features."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), 64)

    def forward(self, clips: Tensor) -> Tensor:
        return clips.flatten(1)


def linear(*words: str) -> Workspace:
    """Return the workspace of a run whose model is one linear layer with a bias."""
    workspace = Workspace(load([*SETTINGS, *words]))
    with torch_stream(0, "test"):
        workspace.model = nn.ModuleDict({"backbone": Pixels(), "classifier": nn.Linear(64, 10)})
    workspace._initial.update(bundle.arrays(workspace.model, None))
    return workspace


def test_the_input_of_a_linear_model_comes_back() -> None:
    found = recover(linear(), 1, steps=300)
    assert list(found.found) == [PLAIN]
    plain = found.found[PLAIN]
    assert plain.psnr > 20
    assert (plain.identified, plain.succeeded) == (1.0, True)
    assert found.originals.shape == plain.images.shape == (1, 1, 8, 8)
    again = recover(linear(), 1, steps=300).found[PLAIN]
    assert (again.images == plain.images).all()


@pytest.mark.parametrize(
    "words",
    [
        ("privacy=example", "privacy.noise_multiplier=2", "privacy.clip=0.1"),
        ("privacy=cell", "privacy.noise_multiplier=2", "privacy.clip=0.1"),
        ("privacy=client", "privacy.noise_multiplier=2", "privacy.clip=0.1"),
        ("privacy=local", "privacy.noise_multiplier=2", "privacy.clip=0.1"),
    ],
)
def test_it_does_not_from_what_a_mechanism_lets_out(words: tuple[str, ...]) -> None:
    plain, released = recover(linear(*words), 1, steps=200).found.values()
    assert plain.psnr > released.psnr + 5
    assert not released.succeeded


def step_of(workspace: Workspace, number: int) -> OneStep:
    augmentation = workspace.protected.augmentation
    own = workspace.indices(0)[:number]
    examples = Examples(workspace.splits.train, own, augmentation, workspace.labels(0)[:number])
    stream = Stream(0, 0, 1)
    batch = make_batch(workspace.objective, examples, np.arange(number), stream, 0, torch.device("cpu"))
    return OneStep(workspace.model.train(), examples, stream, batch)


@pytest.mark.parametrize("mechanism", ["example", "cell", "client", "local"])
def test_without_noise_a_mechanism_lets_out_the_clipped_gradient(mechanism: str) -> None:
    words = (f"privacy={mechanism}", "privacy.noise_multiplier=0", "optimizer.weight_decay=0", "privacy.clip=1e-2")
    workspace = linear(*words)
    before = {name: value.clone() for name, value in workspace.model.state_dict().items()}
    plain, released = gradients(workspace, step_of(workspace, 1), 0).values()
    flat, clipped = (torch.cat([each.flatten() for each in named.values()]) for named in (plain, released))
    assert torch.nn.functional.cosine_similarity(flat, clipped, dim=0) > 0.999
    assert clipped.norm() == pytest.approx(0.01, rel=0.01)
    assert all(torch.equal(value, before[name]) for name, value in workspace.model.state_dict().items())


def test_a_mechanism_of_pairs_lets_out_a_gradient_too() -> None:
    words = ("privacy=logit", "privacy.noise_multiplier=0", "objective.temperature=0.5")
    workspace = Workspace(load([*CONTRASTIVE, *words]))
    plain, released = gradients(workspace, step_of(workspace, 2), 0).values()
    assert plain.keys() == released.keys()
    assert all(value.isfinite().all() and value.shape == plain[name].shape for name, value in released.items())


def test_what_is_not_exchanged_shows_no_gradient() -> None:
    workspace = linear("strategy=fedvssl")  # backbones alone
    with pytest.raises(ConfigError, match="invert: nothing that is trained is exchanged"):
        recover(workspace, 1)


def run(path: Path, *words: str) -> Path:
    """Write the directory of a run that never moved."""
    config = load(words)
    begun = bundle.group(Workspace(config).initial, "backbone")
    return write_run(path, config, begun, None)


def test_the_table_the_file_and_the_picture_show_what_came_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run(tmp_path / "run", *CONTRASTIVE, "privacy=client", "privacy.noise_multiplier=1")
    monkeypatch.setattr("fedssl.privacy.audit.run.recover", lambda *found: recover(*found, steps=3))
    assert main([str(path), "--invert", "2"]) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("gradient of a first", "privacy=client", "an attack of this", "failed"))
    written = json.loads((path / "audit.json").read_text())["recovery"]
    assert (written["examples"], written["model"]) == (2, "initial")
    assert list(written["gradients"]) == [PLAIN, "privacy=client"]
    assert (path / "audit_recovered.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "number", "text"),
    [
        (SETTINGS, "9", "invert must be between 1 and 8, got 9"),
        (SETTINGS, "-1", "invert must be 0 or more, got -1"),
        ((*SETTINGS, "partition.num_clients=60"), "5", "invert=5: must be at most the 3 examples of client 0"),
        (CONTRASTIVE, "1", "invert with this objective must be at least 2, got 1"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, words: tuple[str, ...], number: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path / "run", *words)
    assert main([str(path), f"--invert={number}"]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1


def test_videos_are_not_searched_for() -> None:
    config = load(["experiment=quickstart", "engine=local", "data.num_train=40", "data.num_test=10"])
    with pytest.raises(ConfigError, match="invert: needs images, client 0 has videos"):
        recover(Workspace(config), 2)
