"""Canaries among the 512 digits of two clients: DP-SGD keeps them, and the same run without its noise gives them away.

A canary is a picture of random pixels, whose upright side can be learned by heart and in no other way.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedssl import checkpoint
from fedssl.compose import load
from fedssl.config import build
from fedssl.data.arrays import ArrayDataset
from fedssl.models import bundle
from fedssl.privacy.audit.attack import Attack, attack
from fedssl.privacy.audit.claims import Claim, Guesses, claims
from fedssl.privacy.audit.membership import negative_loss
from fedssl.privacy.audit.one_run import guess
from fedssl.privacy.audit.run import audit_run
from fedssl.seeding import generator
from fedssl.training.loop import Examples, Stream, make_batch
from fedssl.workspace import open_workspace
from simulate import main

SETTINGS = (
    "experiment=quickstart_images", "engine=local", "partition=iid", "partition.num_clients=2",
    "data.test_fraction=0.715", "height=8", "width=8", "augmentation.full.crop_scale=[0.99,1.0]",
    "augmentation.full.jitter=0", "model.width=8", "model.norm=group", "model.stem_stride=2", "objective=rotnet",
    "rounds=2", "client.epochs=15", "client.batch_size=128", "optimizer=adamw", "optimizer.lr=0.01", "evaluation=none",
    "privacy=example", "privacy.sampling_rate=0.25", "privacy.accountant=rdp", "canaries.fraction=0.3",
)  # fmt: skip
EPSILON = 1.0
NOISE = {"noised": f"privacy.target_epsilon={EPSILON}", "bare": "privacy.noise_multiplier=0"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Runs with canaries in place of digits, each made once."""
    canaries = open_workspace(load([*SETTINGS, NOISE["bare"]])).canaries
    read, made = ArrayDataset.read, dict[str, Path]()

    def planted(dataset: ArrayDataset, index: int) -> np.ndarray:
        example = read(dataset, index)
        if index not in canaries.indices:
            return example
        return generator(0, "pixels", index).integers(0, 256, example.shape, np.uint8)

    def path(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name
            assert main([*SETTINGS, NOISE[name], f"run_dir={made[name]}"]) == 0
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayDataset, "read", planted)
        yield path


def attacked(path: Path, noise: str) -> tuple[Attack, Claim]:
    """Guess which canaries were trained on by the loss of the last global model, heads included."""
    workspace = open_workspace(load([*SETTINGS, noise]))
    canaries = workspace.canaries
    arrays = checkpoint.load(path / checkpoint.FOLDER, 2).arrays
    bundle.load(workspace.model, {**workspace.initial, **arrays})
    examples = Examples(workspace.splits.train, canaries.indices, build(workspace.config, "augmentation"))
    places = np.arange(len(canaries.indices))
    batch = make_batch(workspace.objective, examples, places, Stream(0, 0, 0), 0, workspace.device)
    scores = negative_loss(workspace.model, workspace.objective, [batch])
    each = len(places) // 5
    correct = {"loss": guess(scores, canaries.included, each, each)[1]}
    statements = json.loads((path / "result.json").read_text())["privacy"]
    (claim,) = claims(statements, Guesses(len(places), 2 * each, correct))
    return attack(scores[canaries.included], scores[~canaries.included], num_resamples=1), claim


def test_no_attack_shows_more_of_a_noised_run_than_its_epsilon(run: Callable[[str], Path]) -> None:
    path = run("noised")
    _, claim = attacked(path, NOISE["noised"])
    assert (claim.mechanism, claim.epsilon) == ("example", pytest.approx(EPSILON, rel=0.01))
    assert claim.lower[0.95] <= claim.epsilon
    assert not audit_run(path, num_views=4).violated


def test_a_run_that_clips_alone_is_found_out_by_more_than_that_epsilon(run: Callable[[str], Path]) -> None:
    found, claim = attacked(run("bare"), NOISE["bare"])
    assert (claim.mechanism, claim.epsilon) == ("none", None)
    assert found.auc > 0.8
    assert claim.lower[0.95] > EPSILON
