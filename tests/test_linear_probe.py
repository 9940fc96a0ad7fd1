"""Linear probes: closed form, logistic regression and steps, and the choice of their strength."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fedssl.evaluation.calibration import calibration_error
from fedssl.evaluation.linear_probe import LinearProbe, logistic, ridge, standardisation
from fedssl.evaluation.subsets import at_most, labelled

MODES = ("ridge", "lbfgs", "sgd")


def random_data(number: int, dim: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(number, dim, generator=generator, dtype=torch.float64)
    return features, torch.randint(num_classes, (number,), generator=generator)


def blobs(number: int, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    noise, labels = random_data(number, num_classes, num_classes)
    return noise * 0.1 + 7 * torch.eye(num_classes, dtype=torch.float64)[labels] + 100, labels


@pytest.mark.parametrize("shape", [(30, 5), (5, 30)])
def test_ridge_with_a_vanishing_penalty_is_least_squares(shape: tuple[int, int]) -> None:
    features, _ = random_data(*shape, 2)
    targets, _ = random_data(shape[0], 3, 2, seed=1)
    (weight,) = ridge(features, targets, [1e-13])
    expected = torch.linalg.lstsq(features, targets, driver="gelsd").solution
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(30, 5), (5, 30)])
def test_ridge_solves_its_normal_equations(shape: tuple[int, int]) -> None:
    features, _ = random_data(*shape, 2)
    targets, _ = random_data(shape[0], 3, 2, seed=1)
    for penalty, weight in zip((0.1, 7.0), ridge(features, targets, [0.1, 7.0]), strict=True):
        expected = torch.linalg.inv(features.T @ features + penalty * torch.eye(shape[1])) @ features.T @ targets
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-9)


def test_logistic_regression_is_that_of_another_library() -> None:
    features, labels = random_data(60, 4, 3)
    ours = logistic(features, labels, torch.zeros(5, 3, dtype=torch.float64), l2=0.01)
    theirs = LogisticRegression(C=1 / (0.01 * 60), tol=1e-10, max_iter=10_000).fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(ours[:-1].T.numpy(), theirs.coef_, atol=1e-4)
    gaps = ours[-1].numpy() - theirs.intercept_
    np.testing.assert_allclose(gaps, gaps.mean(), atol=1e-4)  # a shift of all biases changes nothing


@pytest.mark.parametrize("mode", MODES)
def test_separable_blobs_are_told_apart(mode: str) -> None:
    train, test = blobs(60), blobs(61)
    fitted = LinearProbe(mode, epochs=20, batch_size=16).fit(*train, 3, seed=0)
    assert fitted.accuracy(*test) == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_shuffled_labels_are_a_matter_of_chance(mode: str) -> None:
    features, labels = random_data(600, 4, 4)
    fitted = LinearProbe(mode, l2=[0.1, 0.01], epochs=5).fit(features[:300], labels[:300], 4, seed=0)
    accuracy = fitted.accuracy(features[300:], labels[300:])
    assert abs(accuracy - 1 / 4) < 3 * math.sqrt(1 / 4 * 3 / 4 / 300)


@pytest.mark.parametrize("mode", MODES)
def test_scale_and_place_of_the_features_do_not_matter(mode: str) -> None:
    features, labels = random_data(80, 5, 3)
    probe = LinearProbe(mode, l2=[0.01], epochs=3)
    plain = probe.fit(features, labels, 3, seed=0)(features)
    moved = features * torch.tensor([1e-3, 1.0, 5.0, 1e3, 1.0], dtype=torch.float64) + 50
    torch.testing.assert_close(probe.fit(moved, labels, 3, seed=0)(moved), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["ridge", "lbfgs"])
def test_the_order_of_the_training_features_does_not_matter(mode: str) -> None:
    features, labels = random_data(80, 5, 3)
    probe, order = LinearProbe(mode, l2=[0.01]), torch.arange(79, -1, -1)
    plain = probe.fit(features, labels, 3, seed=0)(features)
    torch.testing.assert_close(probe.fit(features[order], labels[order], 3, seed=0)(features), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_constant_features_leave_the_most_frequent_class(mode: str) -> None:
    features, labels = torch.ones(10, 3), torch.tensor([0] * 3 + [1] * 7)
    fitted = LinearProbe(mode, epochs=20, batch_size=10).fit(features, labels, 2, seed=0)
    assert fitted(features).argmax(dim=1).tolist() == [1] * 10


@pytest.mark.parametrize("mode", MODES)
def test_a_class_without_examples_is_never_answered(mode: str) -> None:
    features, labels = random_data(40, 3, 2)
    fitted = LinearProbe(mode, epochs=20).fit(features, labels * 2, 3, seed=0)
    assert 1 not in fitted(features).argmax(dim=1)


@pytest.mark.parametrize("mode", ["ridge", "lbfgs"])
def test_held_out_features_choose_the_strength(mode: str) -> None:
    features, _ = random_data(100, 4, 2)
    labels = (features[:, 0] > -0.5).long()
    assert LinearProbe(mode, l2=[1e6, 0.01]).choose(features, labels, 2, seed=0) == 1
    assert LinearProbe(mode, l2=[0.01, 1e6]).choose(features, labels, 2, seed=0) == 0


def test_of_equal_strengths_the_first_is_chosen() -> None:
    assert LinearProbe("ridge", l2=[1e-3, 1e-4]).choose(*blobs(60), 3, seed=0) == 0


def test_steps_take_a_new_view_in_every_step() -> None:
    features, labels = blobs(30)
    seen: list[tuple[int, int]] = []

    def draw(places: np.ndarray, step: int) -> Tensor:
        seen.append((step, len(places)))
        return features[torch.from_numpy(places)]

    probe = LinearProbe("sgd", epochs=2, batch_size=20, augment=True)
    assert probe.fit(features, labels, 3, 0, draw).accuracy(features, labels) == 1.0
    assert seen == [(0, 15), (1, 15), (2, 15), (3, 15)]
    seen.clear()
    LinearProbe("sgd", epochs=2, batch_size=20).fit(features, labels, 3, 0, draw)
    assert not seen


def test_what_varies_by_rounding_alone_is_not_enlarged() -> None:
    features = torch.tensor([[0.0, 1.0, 1.0], [4.0, 1.0, 1.0 + 1e-7]], dtype=torch.float64)
    mean, scale = standardisation(features)
    assert mean[:2].tolist() == [2.0, 1.0]
    assert scale.tolist() == [2.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "svm"),
        ("l2", []),
        ("l2", [0.0]),
        ("learning_rates", [-1.0]),
        ("held_out", 1.0),
        ("epochs", 0),
        ("batch_size", 0),
    ],
)
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        LinearProbe(**{name: value})


def test_a_classifier_that_is_sure_and_right_is_calibrated() -> None:
    labels = np.array([0, 2, 1])
    assert calibration_error(np.eye(3)[labels], labels) == 0.0
    assert calibration_error(np.eye(3)[labels], (labels + 1) % 3) == 1.0


def test_the_error_of_calibration_is_the_mean_gap_of_the_bins() -> None:
    sure = np.array([0.9, 0.9, 0.9, 0.6, 0.7])
    probabilities = np.stack([sure, 1 - sure], axis=1)
    labels = np.array([0, 0, 1, 0, 1])  # bins of 2: all are in one; of 10: 0.9 (2 of 3), 0.6 (1 of 1), 0.7 (0 of 1)
    assert calibration_error(probabilities, labels, bins=2) == pytest.approx(abs(3 / 5 - 4 / 5))
    assert calibration_error(probabilities, labels, bins=10) == pytest.approx((abs(2 - 2.7) + 0.4 + 0.7) / 5)


@pytest.mark.parametrize("sizes", [(100, 30, 3, 1), (7, 7, 7, 0), (1000, 1, 0, 0)])
def test_known_labels_are_stratified_and_nested(sizes: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), sizes))
    few, more = labelled(labels, "1%", 5), labelled(labels, "10%", 5)
    for places, share in ((few, 0.01), (more, 0.1), (labelled(labels, "100%", 5), 1.0)):
        wanted = [max(1, round(share * size)) if size else 0 for size in sizes]
        assert np.bincount(labels[places], minlength=4).tolist() == wanted
    assert set(few) <= set(more)
    assert set(few) != set(labelled(labels, "1%", 6)) or max(sizes) == 7
    assert np.array_equal(few, labelled(labels, "1%", 5))


def test_a_number_per_class_takes_what_there_is() -> None:
    labels = np.repeat(np.arange(3), (5, 1, 9))
    assert np.bincount(labels[labelled(labels, "2 per class", 0)]).tolist() == [2, 1, 2]


@pytest.mark.parametrize("amount", ["0%", "101%", "1", "-1%", "2 per", "half", "0 per class"])
def test_other_amounts_are_refused(amount: str) -> None:
    with pytest.raises(ValueError, match="amount must be"):
        labelled(np.zeros(3, np.int64), amount, 0)


def test_a_limited_evaluation_keeps_the_shares_of_the_classes() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), (600, 300, 100)))
    few, more = at_most(labels, 10, 0), at_most(labels, 100, 0)
    assert np.bincount(labels[few]).tolist() == [6, 3, 1]
    assert np.bincount(labels[more]).tolist() == [60, 30, 10]
    assert set(few) <= set(more)
    assert len(np.unique(more)) == 100
    assert at_most(labels, 3, 0).tolist() == sorted(labelled(labels, "1 per class", 0))
    for count in (None, 1000, 5000):
        assert at_most(labels, count, 0).tolist() == list(range(1000))
