from math import inf, log

import numpy as np
import pytest

from fedssl.privacy.audit.claims import Guesses, claims
from fedssl.privacy.audit.many_runs import many_runs_bound, rate_at_least, rate_at_most
from fedssl.privacy.audit.one_run import guess, one_run_bound


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "epsilon"),
    [
        (100, 100, 100, 0.0, 3.4930),
        (100, 100, 100, 1e-5, 3.4902),
        (1000, 1000, 1000, 0.0, 5.8091),
        (1000, 1000, 600, 0.0, 0.2975),
        (1000, 1000, 600, 1e-5, 0.2972),
        (1000, 200, 180, 0.0, 1.7989),
        (1000, 200, 180, 1e-5, 1.7963),
        (1000, 100, 50, 0.0, 0.0),
        (5000, 500, 450, 1e-5, 1.9414),
    ],
)
def test_right_guesses_bound_epsilon(canaries: int, guesses: int, correct: int, delta: float, epsilon: float) -> None:
    assert one_run_bound(canaries, guesses, correct, delta) == pytest.approx(epsilon, abs=1e-4)


@pytest.mark.parametrize(
    ("guesses", "at_99", "at_95"), [(400, 4.32, 4.84), (600, 4.73, 5.24), (800, 5.02, 5.53), (1000, 5.25, 5.76)]
)
def test_guesses_that_are_all_right_bound_more_the_more_there_are(guesses: int, at_99: float, at_95: float) -> None:
    assert one_run_bound(2000, guesses, guesses, 1e-5, 0.99) == pytest.approx(at_99, abs=0.005)
    assert one_run_bound(2000, guesses, guesses, 1e-5, 0.95) == pytest.approx(at_95, abs=0.005)


def test_guesses_that_are_all_right_are_as_probable_as_the_power_of_one() -> None:
    chance = 0.05 ** (1 / 100)  # e^epsilon / (1 + e^epsilon) to the power 100 is 0.05
    assert one_run_bound(100, 100, 100) == pytest.approx(log(chance / (1 - chance)), abs=1e-9)


@pytest.mark.parametrize("correct", [0, 1, 50, 58])
def test_what_a_coin_would_guess_refutes_nothing(correct: int) -> None:
    assert one_run_bound(100, 100, correct) == 0


def test_the_bound_grows_with_what_is_right_and_falls_with_delta() -> None:
    bounds = [one_run_bound(1000, 200, correct, 1e-6) for correct in range(0, 201, 10)]
    assert bounds == sorted(bounds)
    bounds = [one_run_bound(1000, 200, 180, delta) for delta in (1e-3, 1e-4, 1e-5, 0.0)]
    assert bounds == sorted(bounds)
    assert one_run_bound(1000, 200, 200, delta=1.0) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 0, 0), "num_canaries must be at least 1, got 0"),
        ((10, 11, 0), "num_guesses must be between 0 and 10, got 11"),
        ((10, 5, 6), "num_correct must be between 0 and 5, got 6"),
        ((10, 5, 5, -1.0), "delta must be between 0 and 1, got -1.0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments: tuple[float, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        one_run_bound(*arguments)


def test_the_highest_are_guessed_in_and_the_lowest_out() -> None:
    scores, included = np.array([5.0, 1.0, 4.0, 2.0, 3.0]), np.array([True, True, True, False, False])
    assert guess(scores, included, 2, 1) == (3, 2)  # 5 and 4 are in, 1 was too
    assert guess(scores, included, 0, 2) == (2, 1)
    assert guess(scores, included, 0, 0) == (0, 0)


def test_guesses_are_refused_where_there_are_too_many_or_a_score_is_no_number() -> None:
    scores, included = np.array([1.0, 2.0]), np.array([True, False])
    with pytest.raises(ValueError, match="num_in and num_out must be at most 2 in all, got 3"):
        guess(scores, included, 2, 1)
    with pytest.raises(ValueError, match=r"scores must be \[2\] numbers"):
        guess(np.array([1.0, np.nan]), included, 1, 1)


def gaussian_canaries(noise: float, guesses: int, seed: int, confidence: float = 0.95) -> float:
    """The bound from 2000 canaries, each of which adds 1 to a coordinate of its own, under noise."""
    rng = np.random.default_rng(seed)
    included = rng.random(2000) < 0.5
    num_guesses, right = guess(included + noise * rng.normal(size=2000), included, guesses, guesses)
    return one_run_bound(2000, num_guesses, right, 1e-5, confidence)


@pytest.mark.parametrize(("noise", "truth", "mean"), [(0.5, 9.997, 3.78), (1.0, 4.377, 1.64), (2.0, 1.993, 0.68)])
def test_a_gaussian_mechanism_is_never_refuted(noise: float, truth: float, mean: float) -> None:
    bounds = [gaussian_canaries(noise, 200, seed) for seed in range(40)]
    assert max(bounds) < truth
    assert np.mean(bounds) == pytest.approx(mean, rel=0.12)


def test_a_tenth_of_the_noise_is_caught() -> None:
    assert gaussian_canaries(0.1, 400, 0, 0.95) == pytest.approx(5.53, abs=0.005)
    assert gaussian_canaries(0.1, 400, 0, 0.99) == pytest.approx(5.02, abs=0.005)  # a noise of 1 allows 4.377
    assert gaussian_canaries(0.1, 200, 0, 0.99) == pytest.approx(4.32, abs=0.005)  # too few guesses


@pytest.mark.parametrize(
    ("hits", "false_alarms", "epsilon"), [(500, 0, 4.846), (500, 10, 3.242), (950, 50, 2.660), (100, 100, 0.0)]
)
def test_rates_of_many_runs_bound_epsilon(hits: int, false_alarms: int, epsilon: float) -> None:
    assert many_runs_bound(hits, false_alarms, 1000, 1000, 1e-5) == pytest.approx(epsilon, abs=5e-4)


def test_many_runs_bound_the_same_when_in_and_out_are_exchanged() -> None:
    assert many_runs_bound(990, 500, 1000, 1000) == pytest.approx(many_runs_bound(500, 10, 1000, 1000))


def test_rates_without_a_success_or_without_a_failure_are_known_by_hand() -> None:
    assert rate_at_most(0, 10, 0.95) == pytest.approx(1 - 0.05 ** (1 / 10))
    assert rate_at_least(10, 10, 0.95) == pytest.approx(0.05 ** (1 / 10))
    assert rate_at_least(0, 10, 0.95) == 0
    assert rate_at_most(10, 10, 0.95) == 1
    with pytest.raises(ValueError, match="successes must be between 0 and 10, got 11"):
        rate_at_most(11, 10, 0.95)


GUESSES = Guesses(2000, 800, {"good": 800, "bad": 400})
"""Enough right guesses to refute 4.377."""


def statement(unit: str, epsilon: float | None, adjacency: str = "add_remove") -> dict[str, object]:
    return {"unit": unit, "mechanism": "any", "epsilon": epsilon, "delta": 1e-5, "adjacency": adjacency}


def test_a_claim_is_violated_by_a_bound_above_it() -> None:
    (claim,) = claims([statement("example", 4.377)], GUESSES)
    assert claim.violated
    assert claim.lower[0.99] == pytest.approx(one_run_bound(2000, 800, 800, 1e-5, 0.995))  # two attacks share 1 %
    (claim,) = claims([statement("example", 5.5)], GUESSES)
    assert not claim.violated


def test_only_what_is_said_of_an_example_is_compared_with_what_examples_betray() -> None:
    (claim,) = claims([statement("client", 1.0), statement("example", 3.0, "replace_one")], GUESSES)
    assert (claim.epsilon, claim.delta) == (3.0, 1e-5)


def test_an_epsilon_above_what_right_guesses_show_cannot_be_refuted() -> None:
    few = Guesses(430, 172, {"perfect": 172})
    (low,), (high,) = (claims([statement("example", epsilon)], few) for epsilon in (3.0, 4.0))
    assert low.most == low.lower == {level: one_run_bound(430, 172, 172, 1e-5, level) for level in (0.95, 0.99)}
    assert (low.refutable, low.violated) == (True, True)
    assert (high.refutable, high.violated) == (False, False)
    assert few.most(0.005, 0.99) == 0  # two thousandths of all canaries and more: nothing at all


@pytest.mark.parametrize("statements", [None, [], [statement("none", None)], [statement("client", None)]])
def test_where_nothing_is_claimed_nothing_is_violated(statements: list[dict[str, object]] | None) -> None:
    (claim,) = claims(statements, GUESSES)
    assert (claim.mechanism, claim.epsilon, claim.delta, claim.violated) == ("none", None, 0.0, False)
    assert claim.lower[0.95] > claim.lower[0.99] > 4


def test_a_huge_claim_is_not_refuted() -> None:
    (claim,) = claims([statement("example", 1000.0)], GUESSES)
    assert (claim.refutable, claim.violated) == (False, False)
    assert many_runs_bound(10, 0, 10, 10, 1.0) == 0 < inf
