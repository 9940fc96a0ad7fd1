import numpy as np
import pytest
from scipy.stats import norm

from fedssl.privacy.audit.attack import attack


def normal(number: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of members, which lie `shift` standard deviations higher, and of non-members."""
    rng = np.random.default_rng(seed)
    return rng.normal(shift, size=number), rng.normal(size=number)


def test_four_scores_are_counted_by_hand() -> None:
    found = attack(np.array([3.0, 1.0]), np.array([2.0, 0.0]), low_rates=(0.0, 0.5))
    assert found.auc == 0.75  # three of four pairs
    assert found.true_positives.tolist() == [0, 1, 1, 2, 2]
    assert found.false_positives.tolist() == [0, 0, 1, 1, 2]
    assert found.tpr_at == {0.0: 0.5, 0.5: 1.0}
    assert (found.advantage, found.balanced_accuracy) == (0.5, 0.75)


def test_equal_scores_count_a_half() -> None:
    found = attack(np.array([1.0, 1.0]), np.array([1.0]))
    assert (found.auc, found.advantage, found.tpr_at[0.01]) == (0.5, 0.0, 0.0)


def test_members_that_are_also_non_members_have_an_area_of_a_half() -> None:
    members, _ = normal(100, 0.0, 0)
    found = attack(members, members)
    assert found.auc == 0.5
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.advantage == 0


@pytest.mark.parametrize(
    ("noise", "auc", "at_1", "at_01"),
    [
        (0.5, 0.9214, 0.3721, 0.1378),
        (1.0, 0.7602, 0.0924, 0.0183),
        (2.0, 0.6382, 0.0339, 0.0048),
        (4.0, 0.5702, 0.0189, 0.0023),
    ],
)
def test_two_normal_distributions_are_told_apart_as_they_can_be(
    noise: float, auc: float, at_1: float, at_01: float
) -> None:
    quantiles = norm.ppf((np.arange(100_000) + 0.5) / 100_000)  # exact, where draws would be spread
    found = attack(quantiles + 1 / noise, quantiles, num_resamples=1)
    assert (found.auc, found.tpr_at[0.01], found.tpr_at[0.001]) == pytest.approx((auc, at_1, at_01), abs=5e-4)


@pytest.mark.parametrize(("bound", "advantage"), [(0.5, 0.245), (1.0, 0.462), (2.0, 0.762), (4.0, 0.964)])
def test_answers_that_are_randomised_give_away_what_pure_privacy_allows(bound: float, advantage: float) -> None:
    number, right = 200_000, round(200_000 / (1 + np.exp(-bound)))
    members, others = (np.repeat([1.0, 0.0], [yes, number - yes]) for yes in (right, number - right))
    assert attack(members, others, num_resamples=1).advantage == pytest.approx(advantage, abs=5e-4)


def test_order_and_scale_of_the_scores_do_not_matter() -> None:
    members, others = normal(50, 0.5, 2)
    first, second = attack(members, others), attack(np.exp(members[::-1]), np.exp(others))
    assert first.auc == second.auc
    assert first.tpr_at == second.tpr_at
    exchanged = attack(others, members)
    assert exchanged.auc == pytest.approx(1 - first.auc)


def test_the_interval_holds_the_truth_nineteen_times_of_twenty() -> None:
    held = 0
    for seed in range(400):
        low, high = attack(*normal(80, 1.0, 100 + seed), num_resamples=300, seed=seed).interval
        held += low <= 0.7602 <= high
    assert held / 400 == pytest.approx(0.95, abs=0.03)


def test_the_same_seed_gives_the_same_interval_and_leaves_the_global_generator() -> None:
    scores = normal(50, 1.0, 3)
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert attack(*scores, seed=4).interval == attack(*scores, seed=4).interval
    assert attack(*scores, seed=4).interval != attack(*scores, seed=5).interval
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_scores_of_a_mechanism_do_not_violate_what_it_guarantees() -> None:
    false_alarms = [attack(*normal(1000, 1.0, seed), num_resamples=1).violates(4.377, 1e-5) for seed in range(20)]
    assert not any(false_alarms)
    assert not any(attack(*normal(200, 0.0, seed), num_resamples=1).violates(0.0, 0.0) for seed in range(20))


def test_scores_that_tell_everything_violate_what_is_too_small() -> None:
    found = attack(*normal(1000, 10.0, 0), num_resamples=1)
    assert found.violates(4.377, 1e-5)
    assert not found.violates(6.0, 1e-5)  # a thousand non-members cannot show a rate so small
    assert not found.violates(0.0, 1.0)
    assert not found.violates(1e4, 0.0)


def test_equal_scores_violate_nothing() -> None:
    assert not attack(np.ones(500), np.ones(500), num_resamples=1).violates(0.0, 0.0)


def test_scores_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"members must be numbers, at least one, got \[0\]"):
        attack(np.array([]), np.array([1.0]))
    with pytest.raises(ValueError, match="non_members must be numbers"):
        attack(np.array([1.0]), np.array([np.nan]))
    with pytest.raises(ValueError, match=r"low_rates\[0\] must be between 0 and 1, got 2"):
        attack(np.array([1.0]), np.array([0.0]), low_rates=(2.0,))
