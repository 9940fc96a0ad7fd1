"""Canaries: fair coins, the twin's complement, and runs that train on those that came up alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedssl.compose import load
from fedssl.errors import ConfigError
from fedssl.privacy.canaries import throw
from fedssl.workspace import Workspace, open_workspace
from simulate import main

TINY = (
    "experiment=quickstart_images", "engine=local", "partition=iid",
    "data.test_fraction=0.9", "height=8", "width=8", "rounds=1", "client.epochs=1", "evaluation=none",
)  # fmt: skip
PARTS = [np.arange(0, 2000), np.arange(2000, 2015), np.arange(2015, 5000)]


def workspace(*words: str) -> Workspace:
    return open_workspace(load([*TINY, *words]))


def test_each_client_has_its_share_rounded_down_and_every_canary_is_its_own_example() -> None:
    canaries = throw(PARTS, 0.1, 0, flipped=False)
    assert [int(np.isin(part, canaries.indices).sum()) for part in PARTS] == [200, 1, 298]
    assert (np.diff(canaries.indices) > 0).all()
    assert len(canaries.included) == 499


def test_coins_are_fair() -> None:
    shares = [throw(PARTS, 1.0, seed, flipped=False).included.mean() for seed in range(20)]
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(20 * 5000))
    assert np.std(shares) == pytest.approx(0.5 / np.sqrt(5000), rel=0.5)


def test_coins_say_nothing_of_each_other() -> None:
    included = throw(PARTS, 1.0, 0, flipped=False).included
    assert (included[1:] == included[:-1]).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(5000))


def test_the_twin_trains_on_exactly_the_canaries_that_the_run_leaves_out() -> None:
    first, second = (throw(PARTS, 0.3, 7, flipped=flipped) for flipped in (False, True))
    assert (first.indices == second.indices).all()
    assert (first.included == ~second.included).all()
    assert sorted([*first.left_out, *second.left_out]) == first.indices.tolist()


def test_the_seed_names_the_choice_and_the_coins() -> None:
    first, again, other = (throw(PARTS, 0.3, seed, flipped=False) for seed in (1, 1, 2))
    assert (first.indices == again.indices).all()
    assert (first.included == again.included).all()
    assert (first.indices != other.indices).any()


def test_coins_of_their_own_leave_the_choice_as_it_is() -> None:
    first, other = (throw(PARTS, 0.3, 1, flipped=False, coins=coins) for coins in (None, 2))
    assert (first.indices == other.indices).all()
    assert 0.4 < (first.included == other.included).mean() < 0.6
    assert (first.included == throw(PARTS, 0.3, 1, flipped=False, coins=1).included).all()


def test_coins_are_named_by_a_number() -> None:
    with pytest.raises(ConfigError, match=r"canaries\.coins=-1: must be 0 or more"):
        load([*TINY, "canaries.coins=-1"])


def test_clients_without_examples_have_no_canaries() -> None:
    assert not len(throw([PARTS[0][:0], PARTS[0][:3]], 0.2, 0, flipped=False).indices)


def test_a_client_trains_on_all_it_has_but_the_canaries_that_are_out() -> None:
    chosen = workspace("canaries.fraction=0.5")
    assert chosen.canaries is not None
    for client, part in enumerate(chosen.parts):
        assert set(chosen.indices(client)) == set(part) - set(chosen.canaries.left_out)
        assert 0 < len(chosen.indices(client)) < len(part)


def test_whoever_has_no_canaries_trains_on_everything() -> None:
    chosen = workspace()
    assert chosen.canaries is None
    assert [len(chosen.indices(client)) for client in range(4)] == [len(part) for part in chosen.parts]


def test_devices_have_no_canaries() -> None:
    with pytest.raises(ConfigError, match=r"canaries\.fraction=0\.5: must be 0 with partition=on_device"):
        workspace("partition=on_device", "canaries.fraction=0.5").canaries  # noqa: B018 - they are thrown when asked


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"canaries\.fraction=1\.5: must be between 0 and 1"):
        load([*TINY, "canaries.fraction=1.5"])


def test_a_run_reads_the_examples_that_are_in_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["canaries.fraction=0.8", f"run_dir={tmp_path / 'run'}"]
    chosen = workspace(*words)
    train, read = type(chosen.splits.train), set()
    reader = train.read

    def noted(dataset: object, index: int) -> np.ndarray:
        read.add(index)
        return reader(dataset, index)

    monkeypatch.setattr(train, "read", noted)
    assert main([*TINY, *words]) == 0
    assert read == set(range(len(chosen.splits.train))) - set(chosen.canaries.left_out)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"
