"""No audit refutes a mechanism as it is, and every audit one that adds a tenth of its noise."""

import numpy as np
import pytest

from benchmarks.audit_battery import CASES, Case, WeakKey, audit
from fedssl.privacy.accounting import gaussian_epsilon

NUM_CANARIES = 1500
NUM_GUESSES = 300  # all of them right refute an epsilon of 4 at 99 %


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_mechanism_tells_more_than_it_claims(case: Case) -> None:
    for multiplier in case.multipliers:
        found = audit(case, multiplier, 1, NUM_CANARIES)
        assert found.lower[0.99] <= found.lower[0.95] <= found.epsilon
        assert found.num_guesses == NUM_GUESSES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_tenth_of_the_noise_is_found_out(case: Case) -> None:
    found = audit(case, case.multipliers[1], 1, NUM_CANARIES, WeakKey)
    assert found.lower[0.99] > found.epsilon


def test_the_attack_sees_what_there_is_to_see() -> None:
    """Four releases with noise 2 are one with noise 1: guesses are as often right as those of two Gaussians."""
    rng = np.random.default_rng(0)
    coins = rng.random(200_000) < 0.5
    order = (coins + rng.normal(size=len(coins))).argsort()
    expected = (coins[order[-20_000:]].mean() + 1 - coins[order[:20_000]].mean()) / 2
    for case in CASES:
        if case.multipliers[0] == 2:
            found = audit(case, 2.0, 1, NUM_CANARIES)
            assert found.epsilon == pytest.approx(gaussian_epsilon(1.0, 1e-5), rel=1e-6)
            assert found.num_correct / NUM_GUESSES == pytest.approx(
                expected, abs=4 * np.sqrt(expected * (1 - expected) / NUM_GUESSES)
            )
