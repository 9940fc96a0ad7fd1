import pytest
import torch
from batches import batch_of
from torch import Tensor

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.barlow_twins import BarlowTwins, barlow_twins

# four orthogonal columns of 1 and -1 over eight examples, each of mean 0 and biased variance 1
HADAMARD = torch.tensor([[(-1.0) ** (row & mask).bit_count() for mask in (1, 2, 4, 7)] for row in range(8)]).double()
WEIGHT = 0.005


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_equal_white_views_cost_nothing_but_the_epsilon() -> None:
    assert barlow_twins(HADAMARD, HADAMARD, WEIGHT, epsilon=0).item() == pytest.approx(0, abs=1e-9)
    assert barlow_twins(HADAMARD, HADAMARD, WEIGHT, 0.1).item() == pytest.approx(4 * (0.1 / 1.1) ** 2, abs=1e-9)


def test_opposite_views_cost_four_a_dimension() -> None:
    assert barlow_twins(HADAMARD, -HADAMARD, WEIGHT, epsilon=0).item() == pytest.approx(16, abs=1e-9)


def test_unrelated_views_cost_one_a_dimension() -> None:
    assert barlow_twins(HADAMARD[:, :2], HADAMARD[:, 2:], WEIGHT, epsilon=0).item() == pytest.approx(2, abs=1e-9)


def test_equal_dimensions_cost_the_weight_of_every_pair() -> None:
    same = HADAMARD[:, :1].expand(8, 5)
    assert barlow_twins(same, same, WEIGHT, epsilon=0).item() == pytest.approx(WEIGHT * 5 * 4, abs=1e-9)


def test_scale_and_shift_of_a_dimension_do_not_matter() -> None:
    first, second = noise(2, 6, 3)
    scale, shift = torch.tensor([[0.5], [3.0]]).double() + noise(2, 3).abs(), noise(2, 3, seed=1)
    moved = barlow_twins(scale[0] * first + shift[0], scale[1] * second + shift[1], WEIGHT, epsilon=0)
    assert moved.item() == pytest.approx(barlow_twins(first, second, WEIGHT, epsilon=0).item(), abs=1e-9)


def centred(column: list[float]) -> tuple[list[float], float]:
    mean = sum(column) / len(column)
    differences = [value - mean for value in column]
    return differences, (sum(value**2 for value in differences) / len(column) + 1e-5) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_is_that_of_a_slow_loop_and_has_its_gradient(seed: int) -> None:
    views = noise(2, 5, 3, seed=seed)
    loss = 0.0
    for i in range(3):
        for j in range(3):
            left, right = views[0, :, i].tolist(), views[1, :, j].tolist()
            (left, left_spread), (right, right_spread) = centred(left), centred(right)
            product = sum(x * y for x, y in zip(left, right, strict=True)) / 5
            correlation = product / left_spread / right_spread
            loss += (1 - correlation) ** 2 if i == j else WEIGHT * correlation**2
    assert barlow_twins(*views, WEIGHT).item() == pytest.approx(loss, abs=1e-9)
    assert torch.autograd.gradcheck(lambda both: barlow_twins(*both, WEIGHT), views.requires_grad_())


@pytest.mark.parametrize("views", [noise(2, 2, 3), torch.zeros(2, 4, 3), torch.ones(2, 4, 3)])
def test_loss_and_gradient_are_finite_at_the_edges(views: Tensor) -> None:
    views = views.clone().requires_grad_()
    loss = barlow_twins(*views, WEIGHT)
    loss.backward()
    assert loss.isfinite()
    assert views.grad is not None
    assert views.grad.isfinite().all()


def test_a_step_compares_the_views_of_each_example() -> None:
    objective = BarlowTwins(hidden=8, dim=4, scale=0.5)
    model = build_bundle(lambda: small_resnet(width=2), objective, seed=0).eval()
    views = tuple(torch.rand(2, 3, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    step = objective.step(model, batch_of(*views))
    embedded = [model["projector"](model["backbone"](view)) for view in views]
    torch.testing.assert_close(step.loss, 0.5 * barlow_twins(*embedded, objective.off_diagonal_weight))
    assert "embedding-rank" in step.metrics
    assert set(model) == {"backbone", "projector"}


def test_examples_of_a_batch_are_coupled() -> None:
    assert BarlowTwins.contract.coupling == "batch"
    views = noise(2, 4, 3).requires_grad_()
    barlow_twins(*views[:, :2], WEIGHT).backward()
    assert views.grad is not None
    half = views.grad[:, 0].clone()
    views.grad = None
    barlow_twins(*views, WEIGHT).backward()
    assert not torch.allclose(views.grad[:, 0], half / 2)


@pytest.mark.parametrize("name", ["hidden", "dim", "off_diagonal_weight", "scale"])
def test_arguments_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        BarlowTwins(**{name: -1})
