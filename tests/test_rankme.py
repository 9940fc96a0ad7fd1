"""RankMe: the effective number of directions."""

import math

import numpy as np
import pytest

from fedssl.evaluation.rankme import rankme


@pytest.mark.parametrize("dim", [1, 2, 7, 512])
def test_the_identity_uses_every_direction(dim: int) -> None:
    assert rankme(np.eye(dim)) == pytest.approx(dim, abs=1e-9)


def test_the_paper_adds_a_little_to_each_share() -> None:
    assert rankme(np.eye(512), eps=1e-7) == pytest.approx(512.137, abs=5e-4)


def test_one_direction_counts_as_one() -> None:
    assert rankme(np.outer(np.arange(1, 9), [1.0, -2.0, 0.5])) == pytest.approx(1.0, abs=1e-9)


def test_two_unequal_directions_are_less_than_two() -> None:
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert expected == pytest.approx(1.75477, abs=5e-6)
    assert rankme(np.diag([3.0, 1.0])) == pytest.approx(expected, abs=1e-9)


def test_turning_and_scaling_change_nothing() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6)) * [5, 3, 1, 1, 0.1, 0.01]
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for size in (40, 6))
    assert rankme(1e3 * left @ features @ right) == pytest.approx(rankme(features), abs=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_it_lies_between_one_and_the_rank(rank: int) -> None:
    rng = np.random.default_rng(rank)
    value = rankme(rng.normal(size=(30, rank)) @ rng.normal(size=(rank, 9)))
    assert 1 - 1e-9 <= value <= rank + 1e-9


def test_features_are_not_centred() -> None:
    assert rankme(np.ones((5, 3))) == pytest.approx(1.0)


def test_no_feature_at_all_has_rank_zero() -> None:
    assert rankme(np.zeros((4, 3))) == 0.0


def test_single_precision_features_are_decomposed_in_double_precision() -> None:
    features = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    assert rankme(features) == rankme(features.astype(np.float64))


@pytest.mark.parametrize(("shape", "eps", "name"), [((0, 3), 0.0, "features"), ((2, 2), -1e-7, "eps")])
def test_a_bad_argument_is_named(shape: tuple[int, int], eps: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        rankme(np.ones(shape), eps)
