import pytest
import torch
from torch import Tensor

from fedssl.objectives.neighbourhood import centred_alignment, cosines, neighbourhood_loss


def rows(number: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(number, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def turned(dim: int) -> Tensor:
    return torch.linalg.qr(rows(dim, dim, seed=7)).Q


def test_equal_neighbours_cost_nothing_and_are_fully_aligned() -> None:
    gram = cosines(rows(5, 3))
    assert neighbourhood_loss(gram, gram).item() == 0
    assert centred_alignment(gram, gram) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("number", [2, 3, 8])
def test_orthogonal_and_equal_rows_cost_the_share_of_the_pairs(number: int) -> None:
    orthogonal, equal = (
        cosines(torch.eye(number, dtype=torch.float64)),
        cosines(torch.ones(number, 2, dtype=torch.float64)),
    )
    expected = (number**2 - number) / number**2
    assert neighbourhood_loss(orthogonal, equal).item() == pytest.approx(expected, abs=1e-9)
    assert centred_alignment(orthogonal, equal) == 0
    assert centred_alignment(equal, equal) == 0


def test_opposite_neighbours_cost_the_most() -> None:
    one = cosines(torch.tensor([[1.0], [1.0]]))
    other = cosines(torch.tensor([[1.0], [-1.0]]))
    assert neighbourhood_loss(one, other).item() == 2  # 4 for each pair of different ones, 0 for the diagonal


def test_turns_lengths_and_widths_do_not_matter() -> None:
    first, second = rows(6, 3), rows(6, 5, seed=1)
    loss = neighbourhood_loss(cosines(first), cosines(second)).item()
    lengths = rows(6, 1, seed=2).abs() + 0.1
    changed = cosines(first @ turned(3) * lengths), cosines(second @ turned(5) * 9)
    assert neighbourhood_loss(*changed).item() == pytest.approx(loss, abs=1e-9)
    wider = cosines(torch.cat((first, torch.zeros(6, 4, dtype=torch.float64)), dim=1))
    assert neighbourhood_loss(wider, cosines(first)).item() == pytest.approx(0, abs=1e-9)
    assert centred_alignment(*changed) == pytest.approx(centred_alignment(cosines(first), cosines(second)), abs=1e-9)


def test_the_loss_is_that_of_a_slow_loop_over_pairs() -> None:
    first, second = rows(5, 3), rows(5, 4, seed=1)
    total = 0.0
    for i in range(5):
        for j in range(5):
            pair = [float(row[i] @ row[j] / (row[i].norm() * row[j].norm())) for row in (first, second)]
            total += (pair[0] - pair[1]) ** 2
    assert neighbourhood_loss(cosines(first), cosines(second)).item() == pytest.approx(total / 25, abs=1e-9)
    assert neighbourhood_loss(cosines(first), cosines(second), 7).item() == pytest.approx(total / 7, abs=1e-9)


def test_the_gradient_reaches_both_networks_and_is_that_of_the_value() -> None:
    for seed in range(3):
        first, second = rows(4, 3, seed).requires_grad_(), rows(4, 2, seed + 9).requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b: neighbourhood_loss(cosines(a), cosines(b)), (first, second))
        neighbourhood_loss(cosines(first), cosines(second)).backward()
        assert first.grad is not None
        assert second.grad is not None
        assert first.grad.any()
        assert second.grad.any()


def test_the_alignment_is_that_of_features_with_their_mean_taken_away() -> None:
    first, second = (torch.nn.functional.normalize(rows(6, dim, dim)) for dim in (3, 4))
    one, other = (row - row.mean(dim=0) for row in (first, second))
    products = [(a.T @ b).square().sum() for a, b in ((one, other), (one, one), (other, other))]
    expected = products[0] / (products[1] * products[2]).sqrt()
    assert centred_alignment(cosines(first), cosines(second)) == pytest.approx(expected.item(), abs=1e-9)


def test_two_examples_are_always_aligned() -> None:
    assert centred_alignment(cosines(rows(2, 3)), cosines(rows(2, 4, seed=1))) == pytest.approx(1, abs=1e-9)


def test_a_row_of_zeros_has_no_neighbours() -> None:
    gram = cosines(torch.zeros(2, 3))
    assert not gram.any()
    assert cosines(torch.zeros(2, 3, dtype=torch.float16)).dtype == torch.float32
