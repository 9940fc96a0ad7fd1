"""RSCFed's consensus of subsets: distances, weights and the mean of subsets by hand."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict

from fedssl.seeding import generator
from fedssl.simulation.grid import identify
from fedssl.wire import NUM_LABELLED, LocalUpdate, write_update
from strategies.averaging import Averaging
from strategies.base import Plan
from strategies.replies import read_sound
from strategies.rscfed import RSCFed, consensus_distances

PLAN = Plan(rounds=3, seed=0, num_clients=2, cohort=None, quorum=1)
NAME = "backbone.w"


def update(value: float, examples: int, labelled: int = 0, counter: int = 0) -> LocalUpdate:
    arrays = {NAME: np.array([value], np.float64), "backbone.n": np.array(counter)}
    return LocalUpdate(0, 1, arrays, examples, {NUM_LABELLED: float(labelled)})


def strategy(**settings: float) -> RSCFed:
    made = RSCFed(**{"num_subsets": 1, "labelled_factor": 1.0, "sup_scale": 0.0, "dist_scale": 0.0, **settings})
    made.buffers = frozenset({"backbone.n"})
    return made


def merged(rule: RSCFed, updates: list[LocalUpdate], seed: int = 0, round_number: int = 1) -> np.ndarray:
    rule.task(updates[0].arrays, round_number, replace(PLAN, seed=seed))
    return rule.merge(updates[0].arrays, iter(updates), round_number)[NAME]


def drawn(number: int) -> list[LocalUpdate]:
    rng = np.random.default_rng(0)
    return [
        LocalUpdate(
            place,
            1,
            {NAME: rng.standard_normal((3, 2)), "head.b": rng.standard_normal(4), "backbone.n": np.array(place)},
            10 * (place + 1),
            {NUM_LABELLED: float(place % 3 == 0)},
        )
        for place in range(number)
    ]


# Distances


def test_a_distance_is_the_sum_of_the_tensors_distances_from_the_weighted_mean() -> None:
    models = [{"a": np.zeros(2), "b": np.array(0.0)}, {"a": np.array([6.0, 8.0]), "b": np.array(2.0)}]
    # from (3, 4) and 1 each is 5 and 1 away: 6, where one vector of all would be sqrt(26)
    assert consensus_distances(models, np.array([5.0, 5.0])) == pytest.approx([6, 6])
    # 3 to 1: the mean is (1.5, 2) and 0.5
    assert consensus_distances(models, np.array([3.0, 1.0])) == pytest.approx([2.5 + 0.5, 7.5 + 1.5])


# Weights


def test_what_is_far_away_counts_less_by_an_exponential_of_distance_over_examples() -> None:
    # the mean by examples of 0 and 4 is 3, so they are 3 and 1 away: exp(-30 log 2 * 3/10) = 2^-9 and 2^-1
    weights = strategy(dist_scale=30 * log(2)).weights([update(0, 10), update(4, 30)])
    assert weights == pytest.approx([1 / 769, 768 / 769], abs=1e-12)  # 10 * 2^-9 to 30 * 2^-1 is 1 to 768


def test_a_client_with_labels_counts_its_factor_once_or_twice() -> None:
    pair = [update(0, 10, labelled=10), update(4, 30)]
    assert strategy(labelled_factor=6).weights(pair) == pytest.approx([2 / 3, 1 / 3])  # 60 to 30
    assert strategy(labelled_factor=6, factor_twice=True).weights(pair) == pytest.approx([12 / 13, 1 / 13])  # 360 to 30


def test_a_factor_that_counts_twice_draws_the_mean_that_distances_are_from() -> None:
    pair = [update(0, 10, labelled=10), update(4, 30)]
    # once: from 3 they are 3 and 1 away, 60 * 2^-9 to 30 * 2^-1 is 1 to 128
    once = strategy(labelled_factor=6, sup_scale=30 * log(2)).weights(pair)
    assert once == pytest.approx([1 / 129, 128 / 129])
    # twice: 60 to 30 makes the mean 4/3, from which they are 4/3 and 8/3 away: 360 * 2^-4 to 30 * 2^-(8/3)
    twice = strategy(labelled_factor=6, sup_scale=30 * log(2), factor_twice=True).weights(pair)
    assert twice[0] / twice[1] == pytest.approx(12 * 2 ** (-4 + 8 / 3))


def test_the_scale_is_that_of_subsets_with_labels_where_there_are_some() -> None:
    rule = strategy(sup_scale=0.0, dist_scale=30 * log(2))
    assert rule.weights([update(0, 10, labelled=1), update(4, 30)]) == pytest.approx([0.25, 0.75])
    assert rule.weights([update(0, 10), update(4, 30)]) == pytest.approx([1 / 769, 768 / 769])


def test_weights_too_small_for_a_number_still_are_weights() -> None:
    pair = [update(-1e3, 1), update(1e3, 1)]
    assert strategy(dist_scale=1e4).weights(pair) == pytest.approx([0.5, 0.5])  # exp(-1e7) each
    far = strategy(dist_scale=1e4).weights([update(0, 1), update(0, 1), update(1e3, 1)])
    assert far == pytest.approx([0.5, 0.5, 0])


def test_step_counters_count_in_distances_as_in_the_authors_code_only_when_asked() -> None:
    pair = [update(0, 10, counter=0), update(0, 30, counter=4)]
    assert strategy(dist_scale=30 * log(2)).weights(pair) == pytest.approx([0.25, 0.75])
    reference = strategy(dist_scale=30 * log(2), reference_compat=True)
    assert reference.weights(pair) == pytest.approx([1 / 769, 768 / 769])  # counters 3 and 1 from their mean


# The mean of subsets


def test_without_distances_one_subset_of_all_is_fedavg() -> None:
    updates = drawn(5)
    plain = Averaging().merge(updates[0].arrays, iter(updates), 1)
    rule = strategy(subset_size=5)
    result = rule.merge(updates[0].arrays, iter(updates), 1)
    for name, array in plain.items():
        np.testing.assert_allclose(result[name], array, atol=1e-12)
    assert result["backbone.n"] == 4


def test_one_subset_of_all_by_hand() -> None:
    pair = [update(0, 10), update(4, 30)]
    assert merged(strategy(subset_size=2, dist_scale=30 * log(2)), pair) == pytest.approx([4 * 768 / 769])


def test_equal_updates_give_their_model_whatever_the_subsets() -> None:
    updates = [update(1.7, examples, examples % 2) for examples in (10, 25, 31, 47)]
    for size in (1, 2, 3, 9):
        assert merged(RSCFed(num_subsets=3, subset_size=size), updates) == pytest.approx([1.7], abs=1e-12)


def test_subsets_of_all_updates_are_one_subset() -> None:
    updates = drawn(4)
    one, many = RSCFed(1, 4, sup_scale=5), RSCFed(7, 10, sup_scale=5)  # 4 came of 10 that were wanted
    np.testing.assert_allclose(merged(one, updates), merged(many, updates), atol=1e-12)


def test_the_model_is_the_plain_mean_of_the_subsets_models() -> None:
    updates, rule = drawn(6), strategy(num_subsets=3, subset_size=4, labelled_factor=6, sup_scale=5, dist_scale=20)
    result = merged(rule, updates, seed=3, round_number=2)
    rng = generator(3, "subsets", 2)
    models = []
    for _ in range(3):
        subset = [updates[place] for place in sorted(rng.choice(6, 4, replace=False))]
        weights = rule.weights(subset)
        models.append(sum(weight * one.arrays[NAME] for weight, one in zip(weights, subset, strict=True)))
    np.testing.assert_allclose(result, np.mean(models, axis=0), atol=1e-12)


def test_a_subset_of_one_is_that_update_and_subsets_follow_from_seed_and_round() -> None:
    updates = [update(value, 10) for value in range(8)]

    def picked(seed: int, round_number: int) -> float:
        return float(merged(strategy(subset_size=1), updates, seed, round_number)[0])

    picks = [picked(seed, number) for seed in range(4) for number in range(1, 5)]
    assert set(picks) <= set(range(8))
    assert len(set(picks)) > 4
    assert picks == [picked(seed, number) for seed in range(4) for number in range(1, 5)]


def test_an_update_that_does_not_say_what_it_knows_is_refused() -> None:
    identify()
    silent = LocalUpdate(0, 1, update(0, 1).arrays, 10, {})
    reply = Message(write_update(silent), reply_to=Message(RecordDict(), 1, MessageType.TRAIN))
    with pytest.raises(ValueError, match="metric num-labelled is missing"):
        read_sound(reply, 0, 1, silent.arrays, RSCFed().metrics, {})


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_subsets", 0, "at least 1"),
        ("subset_size", 0, "at least 1"),
        ("labelled_factor", 0, "above 0"),
        ("sup_scale", -1, "0 or more"),
        ("dist_scale", -1, "0 or more"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: float, text: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be {text}, got {value}"):
        RSCFed(**{name: value})
