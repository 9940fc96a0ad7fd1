import math

import numpy as np
import pytest
from dp_accounting.rdp import compute_epsilon
from scipy.stats import norm

from fedssl.privacy import accountants, accounting
from fedssl.privacy.accounting import (
    Accountant,
    Adjacency,
    Release,
    calibrate,
    epsilon,
    gaussian_epsilon,
    gaussian_noise_multiplier,
    group_epsilon,
    sensitivity,
)

DIGITS = 6e-4  # tables have three


def releases(multiplier: float, rate: float, count: int) -> list[Release]:
    """The same multiplier in two units."""
    return [Release(multiplier, 1.0, rate, count // 2), Release(3 * multiplier, 3.0, rate, count - count // 2)]


# name: sampling rate, multiplier, count, delta, epsilon by the rdp of Opacus and of dp-accounting, by prv, by pld
COSTS = {
    "A1": (1, 1.0, 1, 1e-5, 4.729, 4.729, 4.382, 4.377),
    "A2": (1, 5.0, 100, 1e-5, 10.726, 10.726, 10.003, 9.997),
    "A3": (0.01, 4.0, 10_000, 1e-5, 1.036, 1.036, 0.952, 0.947),
    "A4": (0.01, 1.0, 1_000, 1e-5, 2.101, 2.101, 1.833, 1.828),
    "A5": (0.01, 1.0, 10_000, 1e-5, 6.713, 6.713, 6.193, 6.188),
    "A6": (256 / 60_000, 1.1, 14_062, 1e-5, 2.597, 2.597, 2.387, 2.382),
    "A7": (512 / 50_000, 1.5, 9_766, 1e-5, 3.507, 3.507, 3.235, 3.229),
    "A8": (0.04, 1.2, 500, 1e-4, 4.020, 4.020, 3.590, 3.584),
    "B1": (0.1, 1.0, 100, 1e-3, 5.641, 5.655, 4.790, 4.784),
    "B2": (0.1, 1.0, 540, 1e-3, 14.721, 14.721, 13.099, 13.093),
    "B3": (0.05, 0.8, 200, 1e-3, 6.154, 6.182, 5.152, 5.146),
    "B4": (0.01, 0.8, 100, 1e-4, 1.688, 1.688, 1.049, 1.044),
    "B5": (5_000 / 763_430, 1.0, 4_120, 1e-9, 3.856, 3.856, 3.559, 3.554),
    "V1": (98_304 / 233e6, 0.48, 6_000, 1 / (2 * 233e6), None, 7.996, None, 6.832),
}


@pytest.mark.parametrize("name", COSTS)
def test_the_accountants_agree_with_the_table(name: str) -> None:
    rate, multiplier, count, delta, opacus, google, prv, pld = COSTS[name]
    made = releases(multiplier, rate, count)
    tight = epsilon(made, delta)
    loose = epsilon(made, delta, accountant="rdp")
    assert tight == pytest.approx(pld, abs=DIGITS)
    assert loose == pytest.approx(max(opacus or 0, google), abs=DIGITS)
    assert tight <= loose
    if prv is not None:
        upper = epsilon(made, delta, accountant="prv")
        assert upper == pytest.approx(prv, abs=DIGITS)
        assert 0 <= upper - tight <= 0.011
        assert opacus == pytest.approx(google, rel=5e-3)


@pytest.mark.parametrize(
    ("made", "rdp", "prv", "pld"),
    [
        ([Release(1.0, 1.0, 0.01, 500), Release(1.5, 1.0, 0.01, 500)], 1.773, 1.477, 1.472),
        ([Release(1.0, 1.0, 0.02, 200), Release(2.0, 1.0, 0.01, 800)], 2.307, 1.942, 1.937),
    ],
)
def test_unlike_releases_add_up_in_whichever_order(made: list[Release], rdp: float, prv: float, pld: float) -> None:
    expected: dict[Accountant, float] = {"rdp": rdp, "prv": prv, "pld": pld}
    for accountant, value in expected.items():
        cost = epsilon(made, 1e-5, accountant=accountant)
        assert cost == pytest.approx(value, abs=DIGITS)
        assert epsilon(made[::-1], 1e-5, accountant=accountant) == cost
        assert (
            epsilon([*made, Release(5.0, 1.0, 0.5, 0), Release(5.0, 1.0, 0.0, 9)], 1e-5, accountant=accountant) == cost
        )


# sampling rate, multiplier, count, delta, adjacency, epsilon by pld and by rdp
@pytest.mark.parametrize(
    ("rate", "multiplier", "count", "delta", "adjacency", "pld", "rdp"),
    [
        (0.01, 1.0, 100, 1e-4, "add_remove", 0.519, 0.918),
        (0.01, 1.0, 100, 1e-4, "replace_one", 0.703, None),
        (1, 1.0, 100, 1e-4, "zero_out", None, 90.9),
        (0.1, 1.0, 100, 1e-3, "add_remove", 4.784, 5.655),
        (0.1, 1.0, 100, 1e-3, "zero_out", 4.784, 5.655),
        (0.1, 1.0, 100, 1e-3, "replace_one", 7.769, None),
        (1, 1.0, 100, 1e-3, "add_remove", 80.0, 85.2),
        (0.1, 1.0, 500, 1e-3, "add_remove", 12.46, 14.04),  # ten rounds of five epochs
        (0.1, 1.0, 2_500, 1e-3, "add_remove", 37.84, 47.53),
        (0.01, 0.8, 10_000, 1e-5, "add_remove", 10.05, 10.94),
    ],
)
def test_federations_cost_what_the_examples_say(
    rate: float,
    multiplier: float,
    count: int,
    delta: float,
    adjacency: Adjacency,
    pld: float | None,
    rdp: float | None,
) -> None:
    made = [Release(multiplier, 1.0, rate, count)]
    expected: dict[Accountant, float | None] = {"pld": pld, "rdp": rdp}
    for accountant, value in expected.items():
        if value is not None:
            shown = epsilon(made, delta, accountant=accountant, adjacency=adjacency)
            assert shown == pytest.approx(value, abs=0.06 if value > 50 else 0.006 if value > 10 else DIGITS)


# target, delta, sampling rate, count, multiplier by rdp, by prv, by pld
@pytest.mark.parametrize("name", COSTS)
def test_both_implementations_of_renyi_agree_with_their_columns(name: str) -> None:
    rate, multiplier, count, delta, *columns = COSTS[name]
    found = [
        float(compute_epsilon(accountants._ORDERS, [count * value for value in curve], delta)[0])
        for curve in accountants._rdp_curves(multiplier, float(rate))
    ]
    for value, column in zip(found, columns[:2], strict=True):
        assert column is None or value == pytest.approx(column, abs=DIGITS)
    assert found[0] == pytest.approx(found[1], rel=5e-3)


CALIBRATED = [
    (1, 1e-5, 0.01, 1_000, 1.514, 1.425, 1.415),
    (2, 1e-5, 0.01, 1_000, 1.022, 0.961, 0.959),
    (4, 1e-5, 0.01, 1_000, 0.778, 0.735, 0.735),
    (8, 1e-5, 0.01, 1_000, 0.616, 0.587, 0.586),
    (3, 1e-3, 0.1, 100, 1.426, 1.299, 1.296),
    (8, 1e-3, 0.1, 100, 0.844, 0.779, 0.779),
    (1, 1e-5, 1, 1, 4.048, 3.767, 3.7306),
]


def by_two_accountants() -> list[tuple[int, Accountant]]:
    """Every row by rdp and by one of the tight ones; those that are fast by both."""
    tight: list[tuple[int, Accountant]] = [(row, "pld" if row == 3 else "prv") for row in range(len(CALIBRATED))]
    return [(row, "rdp") for row in range(len(CALIBRATED))] + tight + [(row, "pld") for row in (0, 4, 5, 6)]


@pytest.mark.parametrize(("row", "accountant"), by_two_accountants())
def test_calibration_meets_the_target_from_below(row: int, accountant: Accountant) -> None:
    target, delta, rate, count, *multipliers = CALIBRATED[row]
    multiplier = calibrate(target, delta, sampling_rate=rate, count=count, accountant=accountant)
    assert multiplier == pytest.approx(multipliers[("rdp", "prv", "pld").index(accountant)], rel=0.015)
    met = epsilon([Release(multiplier * 0.3, 0.3, rate, count)], delta, accountant=accountant)
    assert 0.99 * target <= met <= target


def test_only_what_is_left_is_calibrated() -> None:
    spent = [Release(1.0, 1.0, 0.1, 60)]
    multiplier = calibrate(5.7, 1e-3, sampling_rate=0.1, count=40, accountant="rdp", spent=spent)
    assert 0.98 < multiplier < 1.0  # at 1.0 all hundred cost 5.655
    assert 5.643 <= epsilon([*spent, Release(multiplier, 1.0, 0.1, 40)], 1e-3, accountant="rdp") <= 5.7
    with pytest.raises(ValueError, match=r"target must be above the epsilon that is spent, 4\.\d+, got 3"):
        calibrate(3, 1e-3, sampling_rate=0.1, count=40, accountant="rdp", spent=spent)


def test_calibration_knows_the_adjacency() -> None:
    multiplier = calibrate(4.377, 1e-5, sampling_rate=1, count=9, adjacency="replace_one")
    assert multiplier == pytest.approx(3, abs=1e-3)  # nine releases of it are one of multiplier 1
    release = Release(multiplier * sensitivity(0.3, "replace_one"), 0.3, 1, 9)
    assert 4.37 <= epsilon([release], 1e-5, adjacency="replace_one") <= 4.377


def test_a_unit_that_is_hardly_ever_sampled_needs_no_noise_and_is_refused() -> None:
    with pytest.raises(ValueError, match=r"delta must be below the probability that a unit is sampled, got 0\.01"):
        calibrate(1, 1e-2, sampling_rate=1e-3, count=1)


def test_less_noise_more_sampling_and_more_releases_cost_more() -> None:
    names: tuple[Accountant, ...] = ("rdp", "prv", "pld")
    for accountant in names:

        def cost(multiplier: float, rate: float, count: int, accountant: Accountant = accountant) -> float:
            return epsilon([Release(multiplier, 1.0, rate, count)], 1e-4, accountant=accountant)

        assert cost(1.0, 0.05, 50) > cost(1.1, 0.05, 50)
        assert cost(1.0, 0.06, 50) > cost(1.0, 0.05, 50)
        assert cost(1.0, 0.05, 51) > cost(1.0, 0.05, 50)


def test_nothing_released_costs_nothing_and_no_noise_has_no_bound() -> None:
    names: tuple[Accountant, ...] = ("rdp", "prv", "pld")
    for accountant in names:
        assert epsilon([], 1e-5, accountant=accountant) == 0
        made = [Release(1.0, 1.0, 0.1, 10), Release(0.0, 1.0, 0.1, 1)]
        assert epsilon(made, 1e-5, accountant=accountant) == math.inf
    assert epsilon([Release(1e-5, 1.0, 0.5, 10)], 1e-5) == math.inf  # above a million
    assert group_epsilon([Release(0.0, 1.0, 0.1, 1)], 1e-5, 2) == math.inf
    assert group_epsilon([Release(0.0, 1.0, 0.1, 0)], 1e-5, 2) == 0


def test_a_clip_norm_that_moves_leaves_one_multiplier() -> None:
    clips = [1.0 * math.exp(-0.013 * step) for step in range(100)]
    made = [Release(1.1 * clip, clip, 0.1, 1) for clip in clips]
    assert len({release.noise_std / release.clip for release in made}) > 1  # rounded apart
    assert epsilon(made, 1e-3) == epsilon([Release(1.1, 1.0, 0.1, 100)], 1e-3)


@pytest.mark.parametrize(("target", "multiplier"), [(0.5, 7.0318), (1, 3.7306), (4, 1.0812), (8, 0.6002), (10, 0.4999)])
def test_a_gaussian_is_calibrated_exactly(target: float, multiplier: float) -> None:
    exact = gaussian_noise_multiplier(target, 1e-5)
    assert exact == pytest.approx(multiplier, abs=6e-5)
    assert gaussian_epsilon(1 / exact, 1e-5) == pytest.approx(target, abs=1e-9)
    mu = 1 / exact
    delta = norm.cdf(-target / mu + mu / 2) - math.exp(target) * norm.cdf(-target / mu - mu / 2)
    assert delta == pytest.approx(1e-5, rel=1e-6)


def test_the_textbook_rule_promises_ten_and_gives_more() -> None:
    textbook = math.sqrt(2 * math.log(1.25 / 1e-5)) / 10
    assert textbook == pytest.approx(0.4845, abs=6e-5)
    assert gaussian_epsilon(1 / textbook, 1e-5) == pytest.approx(10.39, abs=6e-3)
    assert gaussian_noise_multiplier(10, 1e-5) > textbook
    half = math.sqrt(2 * math.log(1.25 / 1e-5)) / 0.5
    assert gaussian_noise_multiplier(0.5, 1e-5) < half  # below 1 it only wastes


def test_rounds_of_a_gaussian_are_one_gaussian() -> None:
    assert gaussian_epsilon(math.sqrt(25) / 5, 1e-5) == pytest.approx(4.377, abs=DIGITS)
    assert epsilon([Release(5.0, 1.0, 1, 25)], 1e-5) == pytest.approx(4.377, abs=DIGITS)
    assert epsilon([Release(10.0, 1.0, 1, 25)], 1e-5, adjacency="replace_one") == pytest.approx(4.377, abs=DIGITS)
    assert gaussian_epsilon(0, 1e-5) == 0


def test_dp_accounting_counts_a_replacement_once_by_pld_and_not_at_all_by_rdp() -> None:
    from dp_accounting import GaussianDpEvent, NeighboringRelation
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    relations = [
        NeighboringRelation.ADD_OR_REMOVE_ONE,
        NeighboringRelation.REPLACE_SPECIAL,
        NeighboringRelation.REPLACE_ONE,
    ]
    event = GaussianDpEvent(2.0)
    by_rdp = [RdpAccountant(neighboring_relation=one).compose(event).get_epsilon(1e-5) for one in relations]
    by_pld = [PLDAccountant(one).compose(event).get_epsilon(1e-5) for one in relations]
    assert by_rdp == pytest.approx([2.166] * 3, abs=DIGITS)
    assert by_pld == pytest.approx([1.993, 1.993, 4.377], abs=DIGITS)


def test_a_replacement_costs_a_gaussian_twice_the_shift_by_every_accountant() -> None:
    # noise of twice the clip norm: multiplier 2 where a unit comes or goes, multiplier 1 where it is replaced
    costs: dict[Accountant, tuple[float, float]] = {
        "pld": (1.993, 4.377),
        "prv": (1.998, 4.382),
        "rdp": (2.166, 4.729),
    }
    for accountant, (once, twice) in costs.items():
        for adjacency in ("add_remove", "zero_out"):
            assert epsilon(
                [Release(1.0, 0.5, 1, 1)], 1e-5, accountant=accountant, adjacency=adjacency
            ) == pytest.approx(once, abs=1e-3)
        cost = epsilon([Release(1.0, 0.5, 1, 1)], 1e-5, accountant=accountant, adjacency="replace_one")
        assert cost == pytest.approx(twice, abs=1e-3)
    assert [sensitivity(0.5, "add_remove"), sensitivity(0.5, "zero_out"), sensitivity(0.5, "replace_one")] == [
        0.5,
        0.5,
        1,
    ]


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_a_replacement_under_sampling_is_for_pld_alone(accountant: Accountant) -> None:
    with pytest.raises(ValueError, match=f"accountant must be pld for replace_one under sampling, got {accountant}"):
        epsilon([Release(1.0, 1.0, 0.5, 1)], 1e-5, accountant=accountant, adjacency="replace_one")


def test_prv_says_where_it_cannot_follow() -> None:
    with pytest.raises(ValueError, match="accountant must be pld or rdp for an epsilon above 200, got prv"):
        epsilon([Release(0.1, 1.0, 0.5, 1_000)], 1e-5, accountant="prv")


def test_opposite_vectors_are_the_worst_replacement() -> None:
    outcomes = np.linspace(-12, 12, 24_001)

    def density(shift: float) -> np.ndarray:
        return 0.9 * norm.pdf(outcomes) + 0.1 * norm.pdf(outcomes, shift)

    def divergence(one: float, other: float, bound: float) -> float:
        return float(np.maximum(density(one) - math.exp(bound) * density(other), 0).sum() * 1e-3)

    for bound in (0.1, 0.3, 1.0):
        worst = divergence(1, -1, bound)
        assert all(divergence(one, other, bound) <= worst + 1e-12 for one in (-1, 0, 0.5, 1) for other in (-1, 0, 0.5))
        assert epsilon([Release(1.0, 1.0, 0.1, 1)], worst, adjacency="replace_one") == pytest.approx(bound, abs=1e-4)


def test_a_wide_grid_rounds_up_by_little() -> None:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    fine = from_gaussian_mechanism(1.0, sampling_prob=0.5).self_compose(80).get_epsilon_for_delta(1e-3)
    assert epsilon([Release(1.0, 1.0, 0.5, 80)], 1e-3) == pytest.approx(fine, rel=1e-5)
    assert fine > 25


def test_a_group_costs_more_than_its_members() -> None:
    release = Release(1.0, 1.0, 0.01, 1_000)
    assert group_epsilon([release], 1e-5, 1) == pytest.approx(1.828, abs=DIGITS)
    assert group_epsilon([release], 1e-5, 3) == pytest.approx(6.343, abs=DIGITS)
    assert group_epsilon([Release(6.0, 2.0, 1, 1)], 1e-5, 3) == pytest.approx(
        4.377, abs=DIGITS
    )  # one of thrice the shift
    mixed = [Release(1.0, 1.0, 0.01, 500), Release(4.0, 1.0, 1, 2)]
    assert group_epsilon(mixed, 1e-5, 1) == pytest.approx(epsilon(mixed, 1e-5), rel=1e-3)
    assert group_epsilon(mixed, 1e-5, 2) > group_epsilon(mixed, 1e-5, 1)


def test_the_rate_is_that_of_the_sampler_and_not_one_over_the_number_of_batches() -> None:
    from opacus import PrivacyEngine
    from torch import nn, optim, tensor, utils

    # 7 of 10 examples make ceil(10 / 7) = 2 batches
    model = nn.Linear(1, 1)
    data = utils.data.TensorDataset(tensor([[float(place)] for place in range(10)]))
    engine = PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=optim.SGD(model.parameters(), 0.1),
        data_loader=utils.data.DataLoader(data, batch_size=7),
        noise_multiplier=2.0,
        max_grad_norm=1.0,
    )
    assert loader.sample_rate == 0.5
    for parameter in model.parameters():
        parameter.grad_sample = parameter.detach()[None].expand(1, *parameter.shape)
    optimizer.step()
    assert engine.accountant.history == [(2.0, 0.5, 1)]
    assert epsilon([Release(2.0, 1.0, 0.7, 1)], 1e-5) > 1.1 * epsilon([Release(2.0, 1.0, 0.5, 1)], 1e-5)


def test_an_engine_of_its_own_for_every_round_forgets_the_rounds_before() -> None:
    from opacus.accountants import RDPAccountant

    forgetful = []
    for _ in range(3):
        accountant = RDPAccountant()
        accountant.step(noise_multiplier=2.0, sample_rate=0.1)
        forgetful.append(accountant.get_epsilon(1e-5))
    assert forgetful[0] == forgetful[2]
    costs = [epsilon([Release(2.0, 1.0, 0.1, 1)] * rounds, 1e-5) for rounds in (1, 3)]
    assert costs[1] > 1.2 * costs[0]


def test_the_bits_do_not_depend_on_what_was_computed_before() -> None:
    made = [Release(1.3, 1.0, 0.05, 77), Release(0.9, 1.0, 0.02, 5)]
    names: tuple[Accountant, ...] = ("pld", "prv", "rdp")
    first = [epsilon(made, 1e-5, accountant=name).hex() for name in names]
    for cached in (accounting._epsilon, accountants._rdp_curves, accountants._pld):
        cached.cache_clear()
    split = [made[1], Release(1.3, 1.0, 0.05, 70), Release(1.3, 1.0, 0.05, 7)]
    assert [epsilon(split, 1e-5, accountant=name).hex() for name in names] == first


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: Release(-1.0, 1.0, 1, 1), "noise_std must be 0 or more, got -1.0"),
        (lambda: Release(1.0, 0.0, 1, 1), "clip must be above 0, got 0.0"),
        (lambda: Release(1.0, 1.0, 1.5, 1), "sampling_rate must be between 0 and 1, got 1.5"),
        (lambda: Release(1.0, 1.0, 1, -1), "count must be 0 or more, got -1"),
        (lambda: Release(math.inf, 1.0, 1, 1), "noise_std and clip must be finite, got inf and 1.0"),
        (lambda: epsilon([], 0.0), "delta must be above 0 and below 1, got 0.0"),
        (lambda: epsilon([], 1e-5, accountant="gdp"), "accountant must be one of pld, prv, rdp, got gdp"),
        (lambda: epsilon([], 1e-5, adjacency="none"), "adjacency must be one of add_remove, zero_out, replace_one"),
        (lambda: calibrate(0, 1e-5, sampling_rate=1, count=1), "target must be above 0, got 0"),
        (lambda: calibrate(1, 1e-5, sampling_rate=1, count=0), "count must be at least 1, got 0"),
        (lambda: group_epsilon([Release(1.0, 1.0, 1, 1)], 1e-5, 0), "group_size must be at least 1, got 0"),
        (lambda: gaussian_epsilon(-1, 1e-5), "mu must be 0 or more, got -1"),
        (lambda: gaussian_noise_multiplier(0, 1e-5), "epsilon must be above 0, got 0"),
    ],
)
def test_what_is_out_of_range_is_named(wrong, text: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=text):
        wrong()
