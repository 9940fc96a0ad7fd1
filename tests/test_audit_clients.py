import numpy as np
import pytest

from fedssl.privacy.audit.attack import attack
from fedssl.privacy.audit.clients import (
    canary_cosines,
    canary_directions,
    canary_epsilon,
    participation,
    participation_auc,
    source_accuracy,
)


def test_participation_is_how_far_the_aggregates_went_in_the_client_s_directions() -> None:
    updates = np.array([[0.0, 2.0], [3.0, 0.0]])
    assert participation(np.array([[7.0, 0.5], [-1.5, 9.0]]), updates) == pytest.approx(0.5 - 1.5)
    with pytest.raises(ValueError, match=r"aggregates and updates must be \[rounds, dim\], got \[2, 2\] and \[1, 2\]"):
        participation(updates, updates[:1])


@pytest.mark.parametrize(("noise", "auc"), [(0.5, 0.9214), (1.0, 0.7602), (2.0, 0.6382), (4.0, 0.5702)])
def test_the_area_of_a_round_is_known(noise: float, auc: float) -> None:
    assert participation_auc(noise) == pytest.approx(auc, abs=5e-5)
    assert participation_auc(3 * noise, rounds=9) == pytest.approx(auc, abs=5e-5)


@pytest.mark.parametrize(("noise", "rounds"), [(0.5, 1), (1.0, 1), (2.0, 1), (4.0, 1), (4.0, 9)])
def test_who_took_part_shows_as_much_as_the_noise_lets_it(noise: float, rounds: int) -> None:
    rng = np.random.default_rng(0)
    dim, clip = 20, 3.0
    members, others = [], []
    for trial in range(2000):
        updates = clip * canary_directions(rounds, dim, rng)
        there = trial % 2 == 0
        aggregates = there * updates + noise * clip * rng.normal(size=(rounds, dim))
        (members if there else others).append(participation(aggregates, updates))
    auc = attack(np.array(members), np.array(others), num_resamples=1).auc
    assert auc == pytest.approx(participation_auc(noise, rounds), abs=0.02)


def test_the_owner_is_whose_model_has_the_least_loss() -> None:
    losses = np.array([[0.1, 0.9, 0.5], [0.2, 0.3, 0.4]])
    assert source_accuracy(losses, np.array([0, 1, 1])) == 1.0
    assert source_accuracy(losses, np.array([1, 1, 0])) == pytest.approx(1 / 3)
    chance = np.random.default_rng(0)
    assert source_accuracy(chance.random((4, 20_000)), chance.integers(0, 4, 20_000)) == pytest.approx(0.25, abs=0.01)
    with pytest.raises(ValueError, match=r"losses must be \[clients, 2 examples"):
        source_accuracy(losses, np.array([0, 1]))


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_canaries_estimate_what_the_gaussian_mechanism_spends(noise: float) -> None:
    from dp_accounting import get_epsilon_gaussian

    rng = np.random.default_rng(1)
    dim = 10_000
    directions = canary_directions(200, dim, rng)
    assert np.linalg.norm(directions, axis=1) == pytest.approx(np.ones(200))
    included = np.arange(200) < 100
    cosines = canary_cosines(directions[included].sum(axis=0) + noise * rng.normal(size=dim), directions)
    assert cosines[~included].std() == pytest.approx(0.01, rel=0.2)  # the root of 1 / dim
    expected = get_epsilon_gaussian(noise, 1e-5)
    assert canary_epsilon(cosines[included], 1e-5) == pytest.approx(expected, rel=0.25)


def test_canaries_that_went_nowhere_spend_nothing() -> None:
    assert canary_epsilon(np.array([-0.1, -0.2, 0.05]), 1e-5) == 0
    with pytest.raises(ValueError, match="number of included must be at least 2, got 1"):
        canary_epsilon(np.array([1.0]), 1e-5)
    with pytest.raises(ValueError, match="spread of included must be above 0"):
        canary_epsilon(np.array([1.0, 1.0]), 1e-5)
