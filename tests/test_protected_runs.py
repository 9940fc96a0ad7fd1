"""Clients that change their images before round 1: who they are, what they read, and the same bits everywhere."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_resume import interrupt_after
from test_runs import result

from clients.app import device_config
from fedssl.compose import load
from fedssl.data.arrays import ArrayDataset
from fedssl.errors import ConfigError
from fedssl.privacy.unlearnable.__main__ import main as command
from fedssl.privacy.unlearnable.noise import Noise, read_noise
from fedssl.privacy.unlearnable.probe import Domain, Probe, probe_run
from fedssl.privacy.unlearnable.protected_dataset import ProtectedDataset, kept, stills
from fedssl.privacy.unlearnable.random_noise import RandomNoise
from fedssl.workspace import Workspace, open_workspace
from simulate import main

TINY = (
    "experiment=quickstart_images", "partition=iid", "data.test_fraction=0.8", "height=8", "width=8", "model.width=4",
    "model.stem_stride=2", "objective=rotnet", "rounds=2", "client.epochs=1", "evaluation.scores=[kNN]",
)  # fmt: skip
LOCAL = (*TINY, "engine=local")
HALF = ("protection=random_class", "owners.fraction=0.5")


def workspace(*words: str) -> Workspace:
    return open_workspace(load([*LOCAL, *words]))


def run(path: Path, *words: str, base: Sequence[str] = LOCAL) -> dict:
    assert main([*base, *words, f"run_dir={path}"]) == 0
    return result(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "run"
    run(path)
    return path


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "run"
    run(path, *HALF)
    return path


def test_owners_are_drawn_from_their_seed_and_a_larger_share_has_those_of_a_smaller_one() -> None:
    chosen = [set(workspace(HALF[0], f"owners.fraction={share}").owners) for share in (0, 0.25, 0.5, 1)]
    assert [len(each) for each in chosen] == [0, 1, 2, 4]
    assert chosen[0] <= chosen[1] <= chosen[2] <= chosen[3]
    drawn = {workspace(*HALF, f"owners.seed={seed}").owners for seed in (0, 1, 2)}
    assert len(drawn) > 1
    assert workspace("owners.fraction=0.5").owners == ()  # nothing protects them


def test_what_an_owner_reads_is_within_the_budget_and_not_clean() -> None:
    chosen = workspace(*HALF, "protection.budget=5")
    clean = chosen.splits.train
    for client in range(chosen.num_clients):
        examples, largest = chosen.examples_of(client), 0
        assert len(examples) == len(clean)
        for index in chosen.indices(client):
            changed = np.abs(examples.read(index).astype(int) - clean.read(index))
            largest = max(largest, int(changed.max()))
        assert largest == (5 if client in chosen.owners else 0)


def test_owners_have_noise_of_their_own() -> None:
    chosen = workspace(HALF[0])
    assert (chosen.noise(0).patterns != chosen.noise(1).patterns).any()


def test_every_frame_of_a_video_gets_the_pattern_of_its_example_and_the_middle_one_is_fitted() -> None:
    frames = np.arange(5, dtype=np.uint8)[None, :, None, None, None] * np.ones((3, 1, 2, 2, 1), np.uint8) * 10
    videos = ArrayDataset(np.zeros(3, np.int64), ("a",), ("",) * 3, frames)
    assert (stills(videos, np.array([0, 2])) == 20).all()
    noise = Noise(np.array([1, -2], np.int16).reshape(2, 1, 1, 1) * np.ones((1, 2, 2, 1), np.int16), np.arange(2), 2)
    protected = ProtectedDataset(videos, noise, np.array([2, 0]))
    assert protected.read(2)[:, 0, 0, 0].tolist() == [1, 11, 21, 31, 41]
    assert protected.read(0)[:, 0, 0, 0].tolist() == [0, 8, 18, 28, 38]
    with pytest.raises(IndexError, match="example 1 is not one of the 2"):
        protected.read(1)


def test_images_of_several_sizes_are_refused() -> None:
    class Sizes:
        def read(self, index: int) -> np.ndarray:
            return np.zeros((1, 4, 4 + index, 1), np.uint8)

    with pytest.raises(ValueError, match=r"images must all be \[4, 4, 1\], got \[4, 5, 1\] \(example 1\)"):
        stills(Sizes(), np.arange(2))


def test_noise_is_made_once_and_read_the_next_time(tmp_path: Path) -> None:
    made = []

    def make() -> Noise:
        made.append(1)
        return Noise(np.ones((1, 2, 2, 1), np.int16), np.zeros(3, np.int64), 1)

    path = tmp_path / "protection" / "0.npz"
    first, second = kept(path, make), kept(path, make)
    assert len(made) == 1
    assert (first.patterns == second.patterns).all()
    assert [file.name for file in path.parent.iterdir()] == ["0.npz"]
    kept(None, make)
    kept(tmp_path / "gone" / "protection" / "0.npz", make)  # cannot be written
    assert len(made) == 3


def test_nobody_protected_is_no_protection_to_the_bit(plain: Path, tmp_path: Path) -> None:
    nobody = run(tmp_path / "run", HALF[0], "owners.fraction=0")
    assert nobody["model_sha256"] == result(plain)["model_sha256"]
    assert nobody["protection"] is None
    assert not (tmp_path / "run" / "protection").exists()


def test_a_run_says_what_was_protected_and_that_it_guarantees_nothing(half: Path, plain: Path) -> None:
    owners = workspace(*HALF).owners
    assert sorted(path.name for path in (half / "protection").iterdir()) == [f"{client}.npz" for client in owners]
    assert result(half)["model_sha256"] != result(plain)["model_sha256"]
    assert result(half)["protection"] == "RandomNoise 8/255, 2 of 4 clients"
    page = (half / "report.html").read_text()
    assert "guarantee: none" in page
    assert "protection, empirical: RandomNoise 8/255, 2 of 4 clients" in page
    assert "protection, empirical" not in (plain / "report.html").read_text()


def test_workers_read_what_the_server_made_and_give_the_same_bits(half: Path, tmp_path: Path) -> None:
    ray = run(tmp_path / "ray", *HALF, base=(*TINY, "engine=ray", "engine.num_workers=2"))
    assert ray["model_sha256"] == result(half)["model_sha256"]
    for path in (half / "protection").iterdir():
        assert (read_noise(path).patterns == read_noise(tmp_path / "ray" / "protection" / path.name).patterns).all()


def test_a_run_that_goes_on_does_not_make_its_noise_again(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*LOCAL, *HALF, f"run_dir={tmp_path / 'cut'}"]
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert main(words) == 3
    open_workspace(load(TINY))  # so that nothing is in memory
    monkeypatch.setattr(RandomNoise, "fit", lambda *_: pytest.fail("the noise was made again"))
    assert main([*words, "resume=auto"]) == 0
    assert result(tmp_path / "cut")["model_sha256"] == result(half)["model_sha256"]


def test_noise_that_another_run_left_is_not_taken(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "protection").mkdir()
    assert main([*LOCAL, *HALF, f"run_dir={tmp_path}"]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_absent_owners_leave_a_federation_of_the_others() -> None:
    whole, rest = workspace(*HALF), workspace("owners.fraction=0.5", "owners.absent=true")
    others = [client for client in range(4) if client not in whole.owners]
    assert (rest.num_clients, rest.owners) == (2, ())
    for client, other in enumerate(others):
        assert rest.indices(client).tolist() == workspace(*HALF).indices(other).tolist()


def test_canaries_and_held_out_examples_are_those_of_clients_that_are_there() -> None:
    words = ("client_evaluation=personal", "canaries.fraction=0.5", "owners.fraction=0.5")
    rest = workspace(*words, "owners.absent=true")
    here = np.concatenate([rest.whole(client) for client in range(2)])
    assert np.isin(rest.canaries.indices, here).all()
    assert not np.isin(np.concatenate([rest.held_out(client) for client in range(2)]), here).any()
    chosen = workspace(*words, HALF[0])
    client = chosen.owners[0]
    assert len(chosen.noise(client).rows) == len(chosen.whole(client)) > len(chosen.indices(client))
    flipped = workspace(*words, HALF[0], "canaries.flipped=true")
    assert (flipped.noise(client).patterns == chosen.noise(client).patterns).all()  # twins differ in the coins alone


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("owners.absent=true",), "owners.fraction=1.0: must be above 0 and below 1 where absent is true"),
        (("owners.fraction=1.5",), "owners.fraction=1.5: must be between 0 and 1"),
        (
            ("owners.absent=true", "owners.fraction=0.1"),
            "owners.fraction=0.1: must leave out some of the 4 clients where absent is true, and not all; it names 0",
        ),
        (
            ("protection=random_class", "labels=partial_data"),
            "protection=RandomNoise: needs a label of each image, client 0 knows",
        ),
        (
            ("protection=random_cluster", "protection.num_clusters=999"),
            "client 0: protection.num_clusters=999: must be between 1 and",
        ),
        (
            ("protection=random_class", "privacy=example", "privacy.noise_multiplier=1", "model.norm=group"),
            "so that nothing holds for one example; use privacy=client or privacy=local [PRIV-PROTECTION]",
        ),
        (("protection=random_class", "protection.budget=0"), "protection.budget=0: must be between 1 and 255"),
    ],
)
def test_bad_input_gets_one_line(
    words: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*LOCAL, *words, f"run_dir={tmp_path / 'run'}"]) in (2, 3)
    assert text in capsys.readouterr().err.strip().splitlines()[-1]


def test_protection_goes_with_a_guarantee_for_clients(tmp_path: Path) -> None:
    words = ("privacy=client", "privacy.noise_multiplier=1", "strategy.weights=equal", "model.norm=group", "rounds=1")
    found = run(tmp_path / "run", *HALF, *words, "privacy.delta=0.01")
    assert found["privacy"][0]["epsilon"] > 0
    assert found["protection"]


def test_a_device_writes_no_noise_where_the_server_says() -> None:
    context = SimpleNamespace(run_config={"overrides": "data=digits run_dir=/somewhere"}, node_config={})
    assert device_config(context).run_dir is None


def domain(part: int, examples: int, value: float, *, owner: bool) -> Domain:
    scores = dict.fromkeys(("kNN", "linear", "kNN unseen", "linear unseen"), value)
    return Domain(part, owner, examples, scores, scores)


def test_accuracies_of_several_clients_count_their_images() -> None:
    domains = (domain(0, 30, 0.5, owner=True), domain(1, 10, 0.9, owner=True), domain(2, 10, 0.4, owner=False))
    probe = Probe((*domains, Domain(3, False, 0, {}, {})))
    assert probe.summary()["protected kNN"] == pytest.approx((30 * 0.5 + 10 * 0.9) / 40)
    assert probe.summary()["untrained open linear unseen"] == pytest.approx(0.4)
    assert (probe.owners, probe.others) == ({0, 1}, {2, 3})
    assert Probe.from_dict(json.loads(json.dumps(probe.to_dict()))) == probe


def test_a_probe_asks_all_clients_the_absent_ones_too(half: Path, plain: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", "owners.fraction=0.5", "owners.absent=true")
    probes = [probe_run(path) for path in (plain, half, tmp_path / "run")]
    assert [probe.owners for probe in probes] == [set(), set(workspace(*HALF).owners), set(workspace(*HALF).owners)]
    sizes = [[part.examples for part in probe.domains] for probe in probes]
    assert sizes[0] == sizes[1] == sizes[2] == [len(workspace().indices(client)) for client in range(4)]
    untrained = [[part.untrained for part in probe.domains] for probe in probes]
    assert untrained[0] == untrained[1] == untrained[2]
    values = [value for probe in probes for part in probe.domains for value in part.trained.values()]
    assert len(values) == 48
    assert all(0 <= value <= 1 for value in values)


def test_the_command_shows_both_kinds_of_clients(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["probe", str(half)]) == 0
    shown = capsys.readouterr().out
    assert "linear unseen" in shown
    assert "protected, untrained" in " ".join(shown.split())
    assert json.loads((half / "probe.json").read_text())["summary"]["protected kNN"] >= 0
    assert command(["probe", str(half), "evaluation=none"]) == 2
    assert "evaluation: must be images" in capsys.readouterr().err


def test_a_probe_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the directory of a finished run"):
        probe_run(tmp_path)
