"""The noised mean of DP-FedAvg: what one client can move, what is divided by, and who is drawn."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm as normal
from scipy.stats import rankdata
from torch import nn

from fedssl.arrays import Arrays
from fedssl.errors import PrivacyError
from fedssl.objectives.rotnet import RotNet
from fedssl.privacy.accounting import Release, epsilon
from fedssl.privacy.client import Client, NoisedMean, update_multiplier
from fedssl.privacy.mechanism import Setting, Terms
from fedssl.privacy.noise import NoiseKey
from fedssl.wire import LocalUpdate

K = 4
CURRENT = {"backbone.w": np.array([1.0, 2.0]), "head.t": np.array(0.5), "backbone.mean": np.array([7.0])}
BUFFERS = frozenset({"backbone.mean"})
ZERO = {"backbone.w": np.zeros(2), "head.t": np.array(0.0)}


def mean_of(num_clients: int = K, rate: float = 1.0, key: NoiseKey | None = None, **settings: object) -> NoisedMean:
    """Return the rule as an account makes it; without noise unless told."""
    mechanism = Client(**{"noise_multiplier": 0.0, **settings})
    multiplier = mechanism.noise_multiplier or 0.0
    std = multiplier * mechanism.clip * (2 if mechanism.adjacency == "replace_one" else 1)
    terms = Terms(multiplier, 0.01, Release(std, mechanism.clip, rate, 1))
    return NoisedMean(mechanism, terms, rate, num_clients, key or NoiseKey.from_seed(3), mechanism.clip)


def update(partition: int, change: dict[str, np.ndarray], num_examples: int = 1) -> LocalUpdate:
    arrays = {name: CURRENT[name] + change.get(name, 0.0) for name in CURRENT}
    arrays["backbone.mean"] = np.array([1e9])  # statistics of the client's data
    return LocalUpdate(partition, 1, arrays, num_examples, {})


def merged(
    rule: NoisedMean, updates: Iterable[LocalUpdate], examples: int | dict[int, int] = 1, round_number: int = 1
) -> Arrays:
    counts = (lambda _: examples) if isinstance(examples, int) else examples.__getitem__
    return rule(CURRENT, iter(list(updates)), round_number, BUFFERS, counts).arrays


def moves(arrays: Arrays, others: Arrays = CURRENT) -> float:
    """L2 distance over what is trained."""
    return math.sqrt(sum(float(np.sum((arrays[name] - others[name]) ** 2)) for name in ZERO))


def setting(**changes: object) -> Setting:
    values: dict[str, Any] = {
        "objective": RotNet(), "model": nn.ModuleDict(), "batch_norm": "share", "augmentation": None,
        "procedure": None, "rounds": 10, "epochs": 1, "num_clients": 100, "num_examples": 0, "cohort": None,
        "fixed_cohort": None, "shows_clients": False,
    }  # fmt: skip
    return Setting(**{**values, **changes})


def test_the_sum_of_clipped_changes_is_divided_by_all_clients() -> None:
    long, short = {"backbone.w": np.array([30.0, 40.0])}, {"backbone.w": np.array([0.3, 0.0]), "head.t": np.array(0.4)}
    arrays = merged(mean_of(), [update(0, long), update(2, short)])
    assert arrays["backbone.w"] == pytest.approx(CURRENT["backbone.w"] + np.array([0.6 + 0.3, 0.8]) / K)
    assert arrays["head.t"] == pytest.approx(0.5 + 0.4 / K)


def test_the_denominator_is_what_a_round_expects_and_not_what_came() -> None:
    one = {"backbone.w": np.array([1.0, 0.0])}
    few, many = (merged(mean_of(rate=0.5), [update(k, one) for k in range(number)]) for number in (1, 3))
    assert few["backbone.w"][0] - 1 == pytest.approx(1 / 2)
    assert many["backbone.w"][0] - 1 == pytest.approx(3 / 2)


def test_statistics_stay_as_they_were() -> None:
    assert merged(mean_of(noise_multiplier=1.0), [update(0, ZERO)])["backbone.mean"] == CURRENT["backbone.mean"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_whoever_fails_or_sends_no_numbers_counts_like_one_that_sends_zero(value: float) -> None:
    one = update(1, {"backbone.w": np.array([0.1, 0.2])})
    zero, nothing, broken = (
        merged(mean_of(noise_multiplier=1.0), [one, *others])
        for others in ([update(2, ZERO)], [], [update(2, {"backbone.w": np.array([value, 0.0])})])
    )
    for name in CURRENT:
        assert zero[name].tobytes() == nothing[name].tobytes() == broken[name].tobytes()


def test_a_round_that_nobody_is_in_is_noise_alone() -> None:
    arrays = merged(mean_of(noise_multiplier=2.0, clip=0.5), [])
    noise = NoiseKey.from_seed(3).normal(1.0, (2,), "client", 1, "backbone.w")
    assert arrays["backbone.w"] == pytest.approx(CURRENT["backbone.w"] + noise / K)


def test_a_round_that_nobody_is_in_is_charged() -> None:
    mechanism = Client(noise_multiplier=1.0)
    charges = mechanism.charges(mechanism.terms(setting()), 3, [], "key")
    assert [(charge.scope, charge.round, charge.release.count) for charge in charges] == [("server", 3, 1)]


def test_noise_is_added_to_the_sum_with_the_spread_that_the_ledger_counts() -> None:
    """The multiplier times the clip, once, over the expected number of clients."""
    current = {"backbone.w": np.zeros(20000)}
    rule = mean_of(num_clients=10, rate=0.5, noise_multiplier=1.5, clip=0.2)
    arrays = rule(current, iter(()), 1, frozenset(), lambda _: 1).arrays
    assert arrays["backbone.w"].std() == pytest.approx(1.5 * 0.2 / 5, rel=0.02)
    arrays = mean_of(noise_multiplier=1.5, clip=0.2, adjacency="replace_one")(
        current, iter(()), 1, frozenset(), lambda _: 1
    ).arrays
    assert arrays["backbone.w"].std() == pytest.approx(2 * 1.5 * 0.2 / K, rel=0.02)  # twice the sensitivity


def test_rounds_draw_noise_of_their_own() -> None:
    first, second = (merged(mean_of(noise_multiplier=1.0), [], round_number=number) for number in (1, 2))
    assert (first["backbone.w"] != second["backbone.w"]).all()


def test_single_precision_comes_back_as_it_went() -> None:
    current = {"backbone.w": np.ones(2, np.float32)}
    arrays = mean_of(noise_multiplier=1.0)(current, iter(()), 1, frozenset(), lambda _: 1).arrays
    assert arrays["backbone.w"].dtype == np.float32


@pytest.mark.parametrize("by_group", [False, True])
def test_without_one_client_the_sum_moves_by_at_most_the_clip(by_group: bool) -> None:
    rng = np.random.default_rng(0)
    furthest = 0.0
    for _ in range(50):
        size = 10 ** rng.uniform(-2, 3)
        updates = [
            update(k, {"backbone.w": size * rng.normal(size=2), "head.t": np.array(size * rng.normal())})
            for k in range(K)
        ]
        rule = mean_of(clip=0.3, by_group=by_group)
        whole = merged(rule, updates)
        furthest = max(
            furthest, *(K * moves(whole, merged(rule, [u for u in updates if u is not gone])) for gone in updates)
        )
    assert furthest == pytest.approx(0.3, rel=1e-6)


def test_each_group_has_its_share_of_the_clip() -> None:
    """Two groups of 1 / sqrt(2) each have length 1 together."""
    arrays = merged(mean_of(by_group=True), [update(0, {"backbone.w": np.array([3.0, 4.0]), "head.t": np.array(0.1)})])
    share = 1 / math.sqrt(2)
    assert K * (arrays["backbone.w"] - CURRENT["backbone.w"]) == pytest.approx([0.6 * share, 0.8 * share])
    assert K * (arrays["head.t"] - 0.5) == pytest.approx(0.1)  # the long backbone does not shrink it


def test_a_client_counts_by_its_examples_up_to_the_cap() -> None:
    examples = {0: 2, 1: 3, 2: 50, 3: 10000}
    one = {"backbone.w": np.array([0.5, 0.0])}
    rule = mean_of(weight_cap=10.0)
    arrays = merged(rule, [update(k, one, number) for k, number in examples.items()], examples)
    assert arrays["backbone.w"][0] - 1 == pytest.approx(0.5)  # a mean of equal changes is that change
    without = merged(rule, [update(k, one, number) for k, number in examples.items() if k != 3], examples)
    assert (2 + 3 + 10 + 10) * moves(arrays, without) == pytest.approx(10 * 0.5)  # at most cap times clip


def test_a_client_that_boasts_of_its_examples_moves_the_sum_by_cap_times_clip() -> None:
    examples = {0: 2, 1: 3, 2: 50, 3: 10}
    arrays = merged(mean_of(weight_cap=10.0), [update(0, {"backbone.w": np.array([9.0, 0.0])}, 10**9)], examples)
    assert (2 + 3 + 10 + 10) * moves(arrays) == pytest.approx(10)


def test_noise_grows_with_the_cap() -> None:
    current = {"backbone.w": np.zeros(20000)}
    rule = mean_of(noise_multiplier=1.0, weight_cap=8.0)
    arrays = rule(current, iter(()), 1, frozenset(), lambda _: 100).arrays
    assert arrays["backbone.w"].std() == pytest.approx(8 / (8 * K), rel=0.02)


def test_weighting_by_all_examples_would_move_the_mean_by_eighteen_times_what_the_noise_covers() -> None:
    """Nine clients of 100 examples and one of 10000, opposed."""
    weights = np.array([100.0] * 9 + [10000.0])
    changes = np.array([-1.0] * 9 + [1.0])
    moved = np.average(changes, weights=weights) - np.average(changes[:9], weights=weights[:9])
    assert moved == pytest.approx(1.84, abs=0.01)
    assert moved / (1 / 10) > 18


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(1, 5, 1.005038), (0.5, 5, 0.500626), (1, 1, 1.154701), (0.7, None, 0.7), (0, 5, 0)],
)
def test_an_update_and_its_bit_come_to_the_multiplier_together(
    total: float, count: float | None, expected: float
) -> None:
    assert update_multiplier(total, count) == pytest.approx(expected, abs=5e-7)
    if count is not None and total:  # the bit moves the count by a half: twice its spread is its multiplier
        assert (update_multiplier(total, count) ** -2 + (2 * count) ** -2) ** -0.5 == pytest.approx(total)


def test_a_count_that_tells_more_than_the_multiplier_allows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise_multiplier must be below 2 with a quantile, got 2"):
        update_multiplier(2.0, 1.0)
    with pytest.raises(ValueError, match=r"noise_multiplier must be below 10 with a quantile, got 10"):
        Client(noise_multiplier=10.0, quantile=0.5, delta=1e-3).terms(setting())  # 100 clients: half of 20 / 2


@pytest.mark.parametrize(
    ("start", "after"), [(0.1, {10: 0.2718, 20: 0.7152, 30: 0.9823}), (3.0, {10: 1.2186, 20: 1.0095, 60: 1.0})]
)
def test_the_clip_finds_the_median_norm_from_both_sides(start: float, after: dict[int, float]) -> None:
    """Norms are log-normal around 1; a rule that is fed the clipped share runs away, to 0.007 and to 39."""
    num_clients = 400
    norms = np.exp(0.3 * normal.ppf((np.arange(num_clients) + 0.5) / num_clients))
    current = {"backbone.w": np.zeros(1)}
    updates = [LocalUpdate(k, 1, {"backbone.w": np.array([value])}, 1, {}) for k, value in enumerate(norms)]
    rule = mean_of(num_clients=num_clients, quantile=0.5, clip=start)
    for round_number in range(1, max(after) + 1):
        rule(current, iter(updates), round_number, frozenset(), lambda _: 1)
        if round_number in after:
            assert rule.clip == pytest.approx(after[round_number], rel=0.01)


def test_the_clip_moves_after_the_release_and_by_what_the_count_says() -> None:
    rule = mean_of(quantile=0.5, clip_rate=0.2, clip=1.0)
    lengths = [0.5, 0.9, 1.0, 3.0]  # three of four are left as they are
    arrays = merged(rule, [update(k, {"backbone.w": np.array([value, 0.0])}) for k, value in enumerate(lengths)])
    assert K * (arrays["backbone.w"][0] - 1) == pytest.approx(0.5 + 0.9 + 1 + 1)
    assert rule.clip == pytest.approx(math.exp(-0.2 * (0.75 - 0.5)))


def test_a_client_that_is_not_there_is_neither_below_nor_above_the_clip() -> None:
    rule = mean_of(quantile=0.5)
    merged(rule, [])
    assert rule.clip == 1.0


def test_the_noise_follows_the_clip() -> None:
    current = {"backbone.w": np.zeros(20000)}
    rule = mean_of(num_clients=100, noise_multiplier=1.0, quantile=0.5)
    rule.clip = 4.0
    arrays = rule(current, iter(()), 1, frozenset(), lambda _: 1).arrays
    assert arrays["backbone.w"].std() == pytest.approx(1.005038 * 4 / 100, rel=0.02)


def test_each_client_is_drawn_by_its_own_coin() -> None:
    mechanism, key, rounds = Client(noise_multiplier=1.0), NoiseKey.from_seed(0), 3000
    drawn = np.zeros((rounds, 20))
    for number in range(rounds):
        drawn[number, mechanism.draw(0.2, 20, key, number)] = 1
    deviation = math.sqrt(0.2 * 0.8 / rounds)
    assert np.abs(drawn.mean(axis=0) - 0.2).max() < 4 * deviation
    pairs = np.corrcoef(drawn.T)[np.triu_indices(20, 1)]
    assert np.abs(pairs).max() < 4.5 / math.sqrt(rounds)  # of 190 pairs
    assert drawn.sum(axis=1).var() == pytest.approx(20 * 0.2 * 0.8, rel=0.15)  # binomial, not a fixed number


def test_coins_are_named_by_the_key_and_the_round() -> None:
    mechanism = Client(noise_multiplier=1.0)
    drawn = [mechanism.draw(0.5, 60, key, number) for key in map(NoiseKey.from_seed, (0, 1)) for number in (1, 2)]
    assert len({tuple(partitions) for partitions in drawn}) == 4
    assert mechanism.draw(0.5, 60, NoiseKey.from_seed(0), 1) == drawn[0]
    assert mechanism.draw(1.0, 3, NoiseKey.from_seed(0), 1) == [0, 1, 2]


def test_some_rounds_draw_nobody() -> None:
    drawn = [Client(noise_multiplier=1.0).draw(0.1, 4, NoiseKey.from_seed(0), number) for number in range(400)]
    assert np.mean([not partitions for partitions in drawn]) == pytest.approx(0.9**4, abs=0.1)


@pytest.mark.parametrize(("multiplier", "rounds"), [(1.0, 1), (2.0, 3)])
def test_whoever_knows_the_canary_tells_it_as_well_as_the_noise_allows_and_no_better(
    multiplier: float, rounds: int
) -> None:
    """A client's change is either e1 in every round or missing; the best test adds up what the rounds say along e1."""
    current = {"w": np.zeros(2)}
    others = [LocalUpdate(0, 1, {"w": np.array([0.0, 0.3])}, 1, {})]
    canary = LocalUpdate(1, 1, {"w": np.array([5.0, 0.0])}, 1, {})
    trials, scores = 2000, np.zeros((2, 2000))
    for there in (0, 1):
        for trial in range(trials):
            key = NoiseKey.from_seed(2 * trial + there)
            rule = mean_of(num_clients=2, key=key, noise_multiplier=multiplier)
            for number in range(1, rounds + 1):
                released = rule(current, iter([*others, *[canary][:there]]), number, frozenset(), lambda _: 1)
                scores[there, trial] += released.arrays["w"][0]
    ranks = rankdata(scores.ravel())[trials:]
    area = (ranks.sum() - trials * (trials + 1) / 2) / trials**2
    assert area == pytest.approx(normal.cdf(math.sqrt(rounds) / (multiplier * math.sqrt(2))), abs=0.02)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"quantile": 1.0}, "quantile must be above 0 and below 1, got 1.0"),
        ({"quantile": 0.5, "by_group": True}, "quantile must be null with by_group or replace_one, got 0.5"),
        ({"sampling_rate": 0.0}, "sampling_rate must be above 0 and at most 1, got 0.0"),
        ({"weight_cap": 0.0}, "weight_cap must be above 0, got 0.0"),
        ({"clip": 0.0}, "clip must be above 0, got 0.0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be 0 or more, got -1.0"),
        ({"amplification": "yes"}, "amplification must be one of claim, none, got yes"),
        ({"adjacency": "swap"}, "adjacency must be one of add_remove, zero_out, replace_one, got swap"),
        (
            {"min_survivors": 2},
            "min_survivors must be a number where secure_aggregation is true, and null where it is not, got 2",
        ),
    ],
)
def test_an_argument_out_of_range_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        Client(**{"noise_multiplier": 1.0, **settings})


def test_the_rate_is_the_cohort_unless_it_is_given() -> None:
    assert Client(noise_multiplier=1.0).rate_and_count(setting(cohort=20)) == (0.2, 1)
    assert Client(noise_multiplier=1.0).rate_and_count(setting()) == (1.0, 1)
    assert Client(noise_multiplier=1.0, sampling_rate=0.05).rate_and_count(setting()) == (0.05, 1)
    assert Client(noise_multiplier=1.0, amplification="none").rate_and_count(setting(cohort=20)) == (1.0, 1)


def test_delta_is_a_tenth_of_one_over_the_clients_and_never_as_much_as_one_over_them() -> None:
    assert Client(noise_multiplier=1.0).terms(setting()).delta == pytest.approx(0.001)
    with pytest.raises(PrivacyError, match=r"privacy\.delta=0\.01: must be below 0\.01, .*\[PRIV-DELTA\]"):
        Client(noise_multiplier=1.0, delta=0.01).terms(setting())


def test_a_target_is_reached_and_not_exceeded() -> None:
    terms = Client(target_epsilon=4.0, accountant="rdp").terms(setting(cohort=10))
    spent = epsilon([terms.release] * 10, terms.delta, accountant="rdp", adjacency="add_remove")
    assert 0.99 * 4 <= spent <= 4
