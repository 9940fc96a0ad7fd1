"""Why clients and examples are drawn by coins of their own, and not a fixed number of them."""

import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent, UnsupportedEventError
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fedssl.privacy.accounting import Release, epsilon


@pytest.mark.parametrize(
    ("population", "delta", "fixed", "rdp", "pld", "replaced", "bare"),
    [(1000, 1e-4, 1.154, 0.918, 0.519, 0.703, 90.9), (100, 1e-3, 10.815, 5.655, 4.784, 7.769, 85.2)],
)
def test_a_fixed_number_costs_more_than_coins_do_with_half_of_the_noise(
    population: int, delta: float, fixed: float, rdp: float, pld: float, replaced: float, bare: float
) -> None:
    """Ten units a release, a hundred releases; the fixed number has twice the noise: replacing moves by 2 clips."""
    drawn = SampledWithoutReplacementDpEvent(population, 10, GaussianDpEvent(1.0))
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE).compose(drawn, 100)
    assert accountant.get_epsilon(delta) == pytest.approx(fixed, abs=6e-4)
    coins = [Release(1.0, 1.0, 10 / population, 100)]
    assert epsilon(coins, delta, accountant="rdp") == pytest.approx(rdp, abs=6e-4)
    assert epsilon(coins, delta) == pytest.approx(pld, abs=6e-4)
    assert epsilon(coins, delta, adjacency="replace_one") == pytest.approx(replaced, abs=6e-4)
    assert epsilon([Release(1.0, 1.0, 1, 100)], delta, accountant="rdp") == pytest.approx(bare, abs=0.05)


@pytest.mark.parametrize("accountant", [PLDAccountant(NeighboringRelation.REPLACE_ONE), RdpAccountant()])
def test_a_fixed_number_has_no_tight_accountant_and_none_for_a_unit_that_is_there_or_not(
    accountant: PLDAccountant | RdpAccountant,
) -> None:
    with pytest.raises(UnsupportedEventError):
        accountant.compose(SampledWithoutReplacementDpEvent(1000, 10, GaussianDpEvent(1.0)))
