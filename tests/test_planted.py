"""Canaries planted among the units of a mechanism: how far they push, what is seen of them, and that runs repeat."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata
from test_client_privacy import BUFFERS, CURRENT, moves, setting, update
from test_local_privacy import AsIs, Dots, encoder
from test_private_runs import CELL, CLIENT, EXAMPLE, LOCAL, TINY, interrupted, ran, result

from fedssl.arrays import Arrays
from fedssl.models.bundle import build_bundle
from fedssl.objectives.objective import Population
from fedssl.objectives.rotnet import RotNet
from fedssl.privacy.account import Account
from fedssl.privacy.accounting import Release
from fedssl.privacy.audit.one_run import guess, one_run_bound
from fedssl.privacy.client import Client
from fedssl.privacy.clipping import norm as length
from fedssl.privacy.example import Example
from fedssl.privacy.gradients import trainable
from fedssl.privacy.mechanism import Terms
from fedssl.privacy.noise import NoiseKey
from fedssl.privacy.planted import Planted, Planting, log_ratio
from fedssl.training.loop import Examples, Schedule, Stream
from fedssl.training.private_loop import PrivateSteps, fit_privately
from simulate import main

KEY = NoiseKey.from_seed(3)
SHAPES: dict[str, tuple[int, ...]] = {"backbone.a": (30, 20), "backbone.b": (), "head.c": (50,)}
PLANTING = Planting(6, seed=1, coins=2, flipped=False)


def auc(scores: np.ndarray, included: np.ndarray) -> float:
    ranks, number = rankdata(scores)[included].sum(), int(included.sum())
    return float((ranks - number * (number + 1) / 2) / (number * (len(scores) - number)))


def alone(index: int, *, by_group: bool = False) -> Planted:
    included = np.arange(6) == index
    return Planted(included, SHAPES, by_group=by_group, rng=np.random.default_rng(0))


@pytest.mark.parametrize("by_group", [False, True])
def test_a_canary_pushes_as_far_as_a_unit_may_and_in_its_own_direction(by_group: bool) -> None:
    pushed = [alone(index, by_group=by_group).push(2.5, 1.0, KEY, 1) for index in range(6)]
    assert [length(each) for each in pushed] == pytest.approx([2.5] * 6)
    assert {name: each.shape for name, each in pushed[0].items()} == SHAPES
    flat = np.stack([np.concatenate([part.ravel() for part in each.values()]) for each in pushed]) / 2.5
    assert np.abs(flat @ flat.T - np.eye(6)).max() < 0.2  # nearly at right angles
    if by_group:
        parts = [length({name: part for name, part in each.items() if name.startswith("head")}) for each in pushed]
        assert parts == pytest.approx([2.5 / math.sqrt(2)] * 6)


def test_those_that_are_not_there_or_not_drawn_push_nothing() -> None:
    nobody = Planted(np.zeros(6, np.bool_), SHAPES, by_group=False, rng=np.random.default_rng(0))
    assert length(nobody.push(1.0, 1.0, KEY, 1)) == 0
    drawn = [length(alone(0).push(1.0, 0.3, KEY, number)) > 0 for number in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.04)


def test_places_have_directions_and_coins_of_their_own_and_a_flip_turns_every_coin() -> None:
    many = Planting(2000, 1, 2, flipped=False)
    coins = [many.included(scope) for scope in ("client 1", "client 2")]
    assert np.mean(coins[0]) == pytest.approx(0.5, abs=0.05)
    assert np.mean(coins[0] == coins[1]) == pytest.approx(0.5, abs=0.05)
    assert (Planting(2000, 1, 2, flipped=True).included("client 1") == ~coins[0]).all()
    pushed = [Planting(1, 1, coins, flipped=False).plant(scope, SHAPES) for scope in "ab" for coins in range(9)]
    ways = {float(each["backbone.b"]) for each in (one.push(1.0, 1.0, KEY, 1) for one in pushed)} - {0.0}
    assert len(ways) == 2


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_evidence_is_the_likelihood_ratio_of_there_or_not(rate: float) -> None:
    seen, noise = np.array([-3.0, 0.0, 0.4, 2.0]), 0.7
    absent, present = norm.pdf(seen, 0, noise), norm.pdf(seen, 1, noise)
    assert log_ratio(seen, noise, rate) == pytest.approx(np.log((1 - rate) + rate * present / absent))


def test_little_noise_overflows_nothing() -> None:
    assert np.isfinite(log_ratio(np.array([-50.0, 50.0]), 1e-3, 0.5)).all()
    assert log_ratio(np.array([0.2]), 0.0, 0.5) == [0.2]


def server(tmp_path: Path, rounds: int, noise: float, number: int, **settings: float) -> tuple[Account, Arrays]:
    """Return the account and the model after rounds in which four clients change nothing."""
    run = setting(num_clients=4, rounds=rounds)
    client = Client(noise_multiplier=noise, delta=1e-5, **settings)
    account = Account(client, run, tmp_path, 0, None, Planting(number, 1, 2, flipped=False))
    current: Arrays = {"backbone.w": np.zeros(20000)}
    for round_number in range(1, rounds + 1):
        account.charge(round_number, account.draw(round_number) or [])
        current = account.release(current, iter(()), round_number, frozenset(), lambda _: 1).arrays
    return account, current


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (2.0, 1), (4.0, 4)])
def test_canaries_at_the_server_are_told_apart_as_well_as_the_noise_allows(
    noise: float, rounds: int, tmp_path: Path
) -> None:
    account, _ = server(tmp_path, rounds, noise, 2000)
    included = Planting(2000, 1, 2, flipped=False).included("server")
    best = norm.cdf(math.sqrt(rounds) / (noise * math.sqrt(2)))
    assert auc(np.array(account.evidence["server"]), included) == pytest.approx(best, abs=0.04)
    num_guesses, right = guess(np.array(account.evidence["server"]), included, 400, 400)
    assert one_run_bound(2000, num_guesses, right, 1e-5, 0.99) <= (account.epsilon() or 0)


def test_a_tenth_of_the_noise_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    normal = NoiseKey.normal
    monkeypatch.setattr(NoiseKey, "normal", lambda key, std, *where: normal(key, std / 10, *where))
    account, _ = server(tmp_path, 1, 4.0, 500)
    included = Planting(500, 1, 2, flipped=False).included("server")
    num_guesses, right = guess(np.array(account.evidence["server"]), included, 100, 100)
    assert one_run_bound(500, num_guesses, right, 1e-5, 0.99) > (account.epsilon() or math.inf)


@pytest.mark.parametrize("settings", [{}, {"weight_cap": 5.0}, {"by_group": True}, {"quantile": 0.5}])
def test_a_canary_moves_the_model_by_what_one_client_may(settings: dict[str, float], tmp_path: Path) -> None:
    coins = next(seed for seed in range(99) if Planting(1, 1, seed, flipped=False).included("server")[0])
    client = Client(noise_multiplier=0.0, delta=1e-5, clip=0.3, **settings)  # type: ignore[arg-type]
    account = Account(client, setting(num_clients=4), tmp_path, 0, None, Planting(1, 1, coins, flipped=False))
    arrays = account.release(CURRENT, iter(()), 1, BUFFERS, lambda _: 5).arrays
    assert moves(arrays) == pytest.approx(0.3 / 4)
    assert arrays["backbone.mean"] == CURRENT["backbone.mean"]


def test_a_canary_does_not_move_the_clip(tmp_path: Path) -> None:
    clips = []
    for planting in (None, PLANTING):
        path = tmp_path / str(planting is None)
        path.mkdir()
        client = Client(noise_multiplier=0.0, delta=1e-5, quantile=0.5)
        account = Account(client, setting(num_clients=4), path, 0, None, planting)
        account.release(CURRENT, iter([update(0, {})]), 1, BUFFERS, lambda _: 1)
        clips.append(account.state()["clip"])
    assert clips[0] == clips[1] != 1.0


@pytest.mark.parametrize(("rate", "noise"), [(1.0, 3.0), (0.25, 1.0)])
def test_canaries_in_steps_are_seen_by_the_noised_sums_alone(rate: float, noise: float) -> None:
    model = build_bundle(encoder, RotNet(), 0, Population(4, 1))
    shapes = {name: tuple(value.shape) for name, value in trainable(model).items()}
    mechanism = Example(noise_multiplier=noise, clip=1e-3, sampling_rate=rate, delta=1e-5)
    terms = Terms(noise, 1e-5, Release(noise * 1e-3, 1e-3, rate, 1))
    evidence, included = [], []
    for client in range(30):
        planting = Planting(10, 1, 2, flipped=False)
        planted = planting.plant(str(client), shapes)
        fit_privately(
            model,
            RotNet(),
            Examples(Dots(4), np.arange(4), AsIs()),
            lambda parameters: torch.optim.SGD(parameters, lr=1.0),
            Schedule(4, 8, 1.0, 0.0),
            Stream(0, client, 1),
            PrivateSteps(mechanism, terms, NoiseKey.from_seed(7), None, planted),
        )
        evidence.append(planted.taken())
        included.append(planting.included(str(client)))
        assert not planted.taken().any()
    found, there = np.concatenate(evidence), np.concatenate(included)
    assert 0.6 < auc(found, there) < 0.98
    if rate == 1:  # four steps
        assert auc(found, there) == pytest.approx(norm.cdf(math.sqrt(4) / (noise * math.sqrt(2))), abs=0.08)


WITH = "canaries.directions=5"
RUNS = {"example": EXAMPLE, "cell": CELL, "client": CLIENT}


def evidence(path: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((path / "planted.json").read_text())
    return found


@pytest.mark.parametrize("name", list(RUNS))
def test_both_engines_and_a_run_that_goes_on_see_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*RUNS[name], "rounds=3", WITH]
    whole = ran(tmp_path / "whole", *words)
    seen = evidence(tmp_path / "whole")
    assert {len(each) for each in seen.values()} == {5}
    assert len(seen) == (1 if name == "client" else 4)
    assert main(interrupted(tmp_path / "cut", monkeypatch, *words)) == 0
    assert result(tmp_path / "cut")["model_sha256"] == whole["model_sha256"]
    assert evidence(tmp_path / "cut") == seen
    if name == "example":
        ray = ran(tmp_path / "ray", *words, "engine=ray", "engine.num_workers=2")
        assert ray["model_sha256"] == whole["model_sha256"]
        assert evidence(tmp_path / "ray") == seen


@pytest.mark.parametrize(
    "words",
    [(), LOCAL, (*CLIENT, "privacy.secure_aggregation=true", "privacy.min_survivors=2", "privacy.adjacency=zero_out")],
)
def test_where_no_sum_of_units_is_noised_none_are_planted(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *words, WITH, f"run_dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.startswith("canaries.directions=5: must be 0 unless a sum of units is noised: ")
    assert not (tmp_path / "run").exists()
