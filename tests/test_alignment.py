"""Alignment and uniformity, and what classes and dimensions have to do with the cosines."""

import math

import numpy as np
import pytest

from fedssl.evaluation import alignment as module
from fedssl.evaluation.alignment import alignment, uniformity
from fedssl.evaluation.similarity import class_cosines, spread


def random_features(number: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, dim))


def test_equal_views_are_aligned() -> None:
    features = random_features(9, 4)
    assert alignment(features, 3 * features) == pytest.approx(0.0, abs=1e-9)


def test_the_squared_distance_is_two_minus_two_cosines() -> None:
    first, second = random_features(9, 4), random_features(9, 4, 1)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / lengths
    assert alignment(first, second) == pytest.approx(2 - 2 * cosines.mean(), abs=1e-9)
    assert alignment(first, second, alpha=1) == pytest.approx(np.sqrt(2 - 2 * cosines).mean(), abs=1e-9)


def test_equal_features_are_not_uniform_at_all() -> None:
    assert uniformity(np.tile([1.0, 2.0, 3.0], (5, 1))) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_right_angles_and_opposites_have_known_uniformity(t: float) -> None:
    assert uniformity(np.eye(6), t) == pytest.approx(-2 * t, abs=1e-9)
    assert uniformity(np.array([[1.0, 1.0], [-2.0, -2.0]]), t) == pytest.approx(-4 * t, abs=1e-9)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_uniformity_is_the_mean_over_all_pairs(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    features = random_features(11, 3)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    terms = [math.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(11) for j in range(i)]
    assert uniformity(features) == pytest.approx(math.log(np.mean(terms)), abs=1e-9)


def test_features_of_length_zero_are_finite() -> None:
    assert alignment(np.zeros((2, 3)), np.eye(3)[:2]) == pytest.approx(1.0)
    assert uniformity(np.zeros((2, 3))) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda: alignment(np.ones((2, 3)), np.ones((3, 3))), "first and second"),
        (lambda: alignment(np.ones((0, 3)), np.ones((0, 3))), "first and second"),
        (lambda: alignment(np.ones((2, 3)), np.ones((2, 3)), 0.0), "alpha"),
        (lambda: uniformity(np.ones((1, 3))), "features"),
        (lambda: uniformity(np.ones((2, 3)), -1.0), "t"),
    ],
)
def test_a_bad_argument_is_named(wrong: object, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        wrong()


def test_cosines_within_and_between_classes_are_means_over_pairs() -> None:
    features, labels = random_features(12, 4), np.array([0, 0, 0, 1, 1, 3, 3, 3, 3, 0, 1, 4])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [(unit[i] @ unit[j], labels[i] == labels[j]) for i in range(12) for j in range(i)]
    within = np.mean([cosine for cosine, same in pairs if same])
    between = np.mean([cosine for cosine, same in pairs if not same])
    assert class_cosines(features, labels) == pytest.approx((within, between), abs=1e-9)


def test_classes_on_axes_have_cosines_one_and_zero() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert class_cosines(5 * np.eye(3)[labels], labels) == pytest.approx((1.0, 0.0), abs=1e-9)
    assert class_cosines(np.eye(3), np.arange(3)) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_directions_in_all_dimensions_have_the_spread_of_a_sphere() -> None:
    features = random_features(20_000, 16)
    assert spread(features) == pytest.approx(1 / 4, rel=0.01)
    assert spread(np.concatenate([np.eye(16), -np.eye(16)])) == pytest.approx(1 / 4, abs=1e-9)
    assert spread(np.ones((7, 16))) == pytest.approx(0.0, abs=1e-9)
