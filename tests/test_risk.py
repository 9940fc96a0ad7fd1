"""The risk of a probe, taken apart into terms that sum to it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedssl.evaluation.linear_probe import LinearProbe
from fedssl.evaluation.risk import TERMS, decompose, risk

PROBE = LinearProbe("ridge", l2=[1.0, 1e-2, 1e-8])
Labelled = tuple[Tensor, Tensor]


def random_data(number: int, dim: int, num_classes: int, seed: int = 0) -> Labelled:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(number, dim))), torch.from_numpy(rng.integers(0, num_classes, number))


def test_four_terms_sum_to_the_total() -> None:
    rng = np.random.default_rng(0)
    for errors in rng.uniform(size=(20, 4)):
        terms = decompose(*errors)
        assert tuple(terms) == TERMS
        assert sum(terms[name] for name in TERMS[:4]) == pytest.approx(terms["risk-total"], abs=1e-15)
        assert terms["risk-total"] == errors[3]


def test_each_term_is_the_step_to_the_next_error() -> None:
    assert list(decompose(0.125, 0.25, 0.5, 0.75).values()) == [0.125, 0.125, 0.25, 0.25, 0.75]


def test_the_terms_of_a_probe_sum_to_its_test_error() -> None:
    train, test = random_data(80, 5, 3), random_data(40, 5, 3, seed=1)
    terms = risk(PROBE, train, test, 3, 0.05, seed=0)
    assert sum(terms[name] for name in TERMS[:4]) == pytest.approx(terms["risk-total"], abs=1e-12)
    assert terms["risk-approximation"] == 0.05
    fitted = PROBE.fit(*train, 3, seed=0)
    assert terms["risk-total"] == pytest.approx(1 - fitted.accuracy(*test))


def test_features_that_interpolate_random_labels_fail_at_the_probe() -> None:
    train, test = random_data(400, 450, 4), random_data(400, 450, 4, seed=1)
    terms = risk(PROBE, train, test, 4, 0.0, seed=0)
    assert terms["risk-usability"] == 0.0
    deviation = np.sqrt(3 / 16 / 200)
    assert abs(terms["risk-probe"] - 3 / 4) < 3 * deviation
    assert abs(terms["risk-encoder"]) < 5 * deviation


def test_constant_features_fail_at_usability() -> None:
    labels = torch.tensor([0] * 60 + [1] * 40)
    train, test = (torch.ones(100, 3), labels), (torch.ones(50, 3), labels[::2])
    terms = risk(PROBE, train, test, 2, 0.0, seed=0)
    assert list(terms.values()) == pytest.approx([0.0, 0.4, 0.0, 0.0, 0.4], abs=1e-12)


def test_perfect_features_have_no_risk() -> None:
    labels = torch.arange(60) % 3
    data = torch.eye(3, dtype=torch.float64)[labels], labels
    assert list(risk(PROBE, data, data, 3, 0.0, seed=0).values()) == [0.0] * 5


def test_the_term_of_the_encoder_is_zero_where_test_and_held_out_examples_are_the_same() -> None:
    assert decompose(0.0, 0.125, 0.375, 0.375)["risk-encoder"] == 0.0


def test_the_term_of_the_encoder_may_be_negative() -> None:
    train, (features, _) = random_data(60, 3, 2), random_data(30, 3, 2, seed=1)
    easy = features, PROBE.fit(*train, 2, seed=0)(features).argmax(dim=1)
    terms = risk(PROBE, train, easy, 2, 0.0, seed=0)
    assert terms["risk-total"] == 0.0
    assert terms["risk-encoder"] < 0
