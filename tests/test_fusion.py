from math import log

import pytest
import torch
from torch import Tensor

from fedssl.objectives.fusion import agreement, entropy_fusion, entropy_weights


def logits(number: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randn(number, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_identical_networks_agree_and_their_answer_is_unchanged() -> None:
    rows = logits(5, 4)
    assert agreement(rows, rows).all()
    torch.testing.assert_close(entropy_fusion(rows, rows).exp(), rows.softmax(dim=1), rtol=0, atol=1e-9)
    torch.testing.assert_close(entropy_weights(rows, rows), torch.full((2, 5), 0.5).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 10])
def test_a_uniform_answer_counts_one_share_and_a_certain_one_as_many_as_there_are_classes(classes: int) -> None:
    uniform = torch.zeros(1, classes, dtype=torch.float64)
    certain = torch.eye(classes, dtype=torch.float64)[:1] * 1000
    expected = [1 / (1 + classes), classes / (1 + classes)]
    assert entropy_weights(uniform, certain)[:, 0].tolist() == pytest.approx(expected, abs=1e-9)
    fused = entropy_fusion(uniform, certain).exp()[0]
    assert fused[0].item() == pytest.approx((classes + 1 / classes) / (1 + classes), abs=1e-9)
    assert fused[1:].tolist() == pytest.approx([1 / classes / (1 + classes)] * (classes - 1), abs=1e-9)


def test_the_fused_answer_is_that_of_a_slow_loop() -> None:
    first, second = logits(6, 4), 3 * logits(6, 4, seed=1)
    for row in range(6):
        answers = [rows[row].softmax(dim=0).tolist() for rows in (first, second)]
        shares = [torch.tensor(sum(p * log(p) for p in answer)).exp().item() for answer in answers]
        weights = [share / sum(shares) for share in shares]
        expected = [weights[0] * p + weights[1] * q for p, q in zip(*answers, strict=True)]
        assert entropy_fusion(first, second)[row].exp().tolist() == pytest.approx(expected, abs=1e-6)
    assert entropy_fusion(first, second).exp().sum(dim=1).tolist() == pytest.approx([1] * 6, abs=1e-9)


def test_networks_agree_where_their_likeliest_class_is_the_same() -> None:
    first = torch.tensor([[2.0, 1, 0], [0, 2, 1], [0, 1, 2]])
    second = torch.tensor([[9.0, 8, 8], [2, 0, 1], [0, 1, 1.5]])
    assert agreement(first, second).tolist() == [True, False, True]
    assert torch.equal(agreement(first, second), agreement(second, first))


def test_the_order_of_networks_does_not_matter_and_answers_of_any_size_stay_finite() -> None:
    first, second = 1e4 * logits(5, 3), -1e4 * logits(5, 3, seed=1)
    torch.testing.assert_close(entropy_fusion(first, second), entropy_fusion(second, first))
    assert torch.isfinite(entropy_fusion(first, second)).all()
    assert torch.isfinite(entropy_weights(first, second)).all()
