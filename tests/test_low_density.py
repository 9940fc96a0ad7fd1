"""A separator through the gaps between features."""

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from fedssl.evaluation.low_density import LowDensity

NOTHING = torch.zeros(0, 2, dtype=torch.float64)


def two_blobs(number: int, width: float = 0.3) -> tuple[Tensor, Tensor]:
    """Return two blobs that differ in the first coordinate and are long in the second."""
    rng = np.random.default_rng(0)
    labels = np.arange(number) % 2
    features = np.stack([2.0 * labels + width * rng.normal(size=number), 3 * rng.normal(size=number)], axis=1)
    return torch.from_numpy(features), torch.from_numpy(labels)


@pytest.mark.parametrize("l2", [0.02, 0.3])
def test_without_weight_it_is_the_support_vector_machine_of_the_labels(l2: float) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3))
    labels = (features[:, 0] + 0.5 * rng.normal(size=40) > 0).astype(np.int64)
    rows = (features - features.mean(axis=0)) / features.std(axis=0)
    machine = SVC(kernel="linear", C=1 / (40 * l2), tol=1e-10).fit(rows, labels)
    probe = LowDensity(weight=0.0, l2=l2, steps=1000)
    alone, both = probe.fit(torch.from_numpy(features), torch.from_numpy(labels), torch.zeros(0, 3).double(), 2)
    values = alone(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(values[:, 1], machine.decision_function(rows), atol=5e-3)
    np.testing.assert_allclose(values[:, 0], -values[:, 1], atol=1e-9)
    assert both.weight.equal(alone.weight)


def test_without_weight_the_unlabelled_features_do_not_count() -> None:
    features, labels = two_blobs(60)
    probe = LowDensity(weight=0.0, steps=50)
    alone, both = probe.fit(features[:10], labels[:10], features[10:], 2)
    assert both.weight.equal(alone.weight)
    assert both.bias.equal(alone.bias)


def test_one_label_in_each_of_two_separated_blobs_is_enough() -> None:
    features, labels = two_blobs(200)
    known = torch.tensor([int(features[labels == label, 1].argmax()) * 2 + label for label in (0, 1)])
    # the two known examples are far apart along the blobs, which misleads a separator that sees them alone
    features[known[0], 1], features[known[1], 1] = 8.0, -8.0
    unknown = torch.ones(200, dtype=torch.bool)
    unknown[known] = False
    alone, both = LowDensity(weight=1.0, l2=0.01).fit(features[known], labels[known], features[unknown], 2)
    assert alone.accuracy(features, labels) < 0.9
    assert both.accuracy(features, labels) == 1.0


def test_the_separators_keep_the_balance_of_the_labels() -> None:
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.normal(size=(90, 4)))
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    _, both = LowDensity(weight=0.5, steps=40).fit(features[:6], labels, features[6:], 3)
    expected = torch.tensor([2 * 3 / 6 - 1, 2 * 2 / 6 - 1, 2 * 1 / 6 - 1], dtype=torch.float64)
    torch.testing.assert_close(both(features[6:]).mean(dim=0), expected, rtol=0, atol=1e-9)


def test_the_gap_widens_when_unlabelled_features_count() -> None:
    features, labels = two_blobs(100, width=0.5)
    probe = LowDensity(weight=1.0, l2=0.05)
    alone, both = probe.fit(features[:4], labels[:4], features[4:], 2)

    def in_the_gap(values: Tensor) -> float:
        return float(torch.relu(1 - values[4:].abs()).mean())

    assert in_the_gap(both(features)) < in_the_gap(alone(features))


def test_without_unlabelled_features_both_are_the_same() -> None:
    features, labels = two_blobs(10)
    alone, both = LowDensity(steps=10).fit(features, labels, NOTHING, 2)
    assert both.weight.equal(alone.weight)


@pytest.mark.parametrize(
    ("name", "value"),
    [("labels", "few"), ("labels", "0%"), ("weight", -1.0), ("l2", 0.0), ("steps", 0), ("learning_rate", 0.0)],
)
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        LowDensity(**{name: value})
