from itertools import permutations

import pytest
import torch
from batches import batch_of
from torch import Tensor

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.vicreg import VarianceReduction, Vicreg, covariance_penalty, vicreg

# three orthogonal columns over four examples, of mean 0 and unbiased variance 4/3
WHITE = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 0.99), ("sum", 1.98)])
def test_constant_equal_embeddings_lack_nearly_all_their_spread(reduction: VarianceReduction, expected: float) -> None:
    same = torch.full((4, 3), 0.7, dtype=torch.float64)
    assert [term.item() for term in vicreg(same, same, reduction)] == pytest.approx([0, expected, 0], abs=1e-9)


def test_equal_white_views_cost_nothing() -> None:
    assert [term.item() for term in vicreg(WHITE, WHITE)] == pytest.approx([0, 0, 0], abs=1e-9)


def test_two_equal_dimensions_cost_their_squared_variance() -> None:
    twins = noise(6, 1).expand(6, 2)
    assert covariance_penalty(twins).item() == pytest.approx(twins[:, 0].var().item() ** 2, abs=1e-9)
    assert vicreg(twins, twins).covariance.item() == pytest.approx(2 * twins[:, 0].var().item() ** 2, abs=1e-9)


def test_a_shift_between_views_costs_its_mean_square_alone() -> None:
    rows, shift = noise(6, 3), torch.tensor([0.5, -1.0, 2.0]).double()
    still, moved = vicreg(rows, rows), vicreg(rows, rows + shift)
    assert moved.invariance.item() == pytest.approx((0.25 + 1 + 4) / 3, abs=1e-9)
    assert [moved.variance.item(), moved.covariance.item()] == pytest.approx(
        [still.variance.item(), still.covariance.item()], abs=1e-9
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_terms_are_those_of_a_slow_loop_and_have_its_gradient(seed: int) -> None:
    views = noise(2, 5, 3, seed=seed)
    variance = covariance = 0.0
    for view in views:
        columns = [[value - sum(column) / 5 for value in column] for column in view.T.tolist()]
        lacks = [max(0.0, 1 - (sum(x * x for x in column) / 4 + 1e-4) ** 0.5) for column in columns]
        variance += sum(lacks) / 3
        products = [sum(x * y for x, y in zip(*pair, strict=True)) / 4 for pair in permutations(columns, 2)]
        covariance += sum(product**2 for product in products) / 3
    invariance = sum((x - y) ** 2 for x, y in zip(*views.flatten(1).tolist(), strict=True)) / 15
    terms = [term.item() for term in vicreg(*views, "sum")]
    assert terms == pytest.approx([invariance, variance, covariance], abs=1e-9)
    assert torch.autograd.gradcheck(lambda both: torch.stack(vicreg(*both)).sum(), views.requires_grad_())


@pytest.mark.parametrize("views", [noise(2, 2, 3), torch.zeros(2, 4, 3), torch.ones(2, 4, 3)])
def test_terms_and_gradient_are_finite_at_the_edges(views: Tensor) -> None:
    views = views.clone().requires_grad_()
    loss = torch.stack(vicreg(*views)).sum()
    loss.backward()
    assert loss.isfinite()
    assert views.grad is not None
    assert views.grad.isfinite().all()


def test_a_step_weights_the_terms_and_logs_them() -> None:
    objective = Vicreg(hidden=8, dim=4, invariance_weight=2, variance_weight=3, covariance_weight=5)
    model = build_bundle(lambda: small_resnet(width=2), objective, seed=0).eval()
    views = tuple(torch.rand(2, 3, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    step = objective.step(model, batch_of(*views))
    terms = vicreg(*(model["projector"](model["backbone"](view)) for view in views))
    torch.testing.assert_close(step.loss, 2 * terms.invariance + 3 * terms.variance + 5 * terms.covariance)
    assert step.metrics["variance"] == pytest.approx(terms.variance.item())
    assert "embedding-rank" in step.metrics
    assert set(model) == {"backbone", "projector"}


def test_examples_of_a_batch_are_coupled() -> None:
    assert Vicreg.contract.coupling == "batch"
    views = noise(2, 4, 3)
    halves = [torch.stack(vicreg(*half)).sum().item() for half in views.split(2, dim=1)]
    assert torch.stack(vicreg(*views)).sum().item() != pytest.approx(sum(halves) / 2, rel=1e-3)


@pytest.mark.parametrize("name", ["hidden", "dim", "invariance_weight", "variance_weight", "covariance_weight"])
def test_arguments_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        Vicreg(**{name: -1})


def test_an_unknown_reduction_is_named() -> None:
    with pytest.raises(ValueError, match="variance_reduction must be one of mean, sum, got max"):
        Vicreg(variance_reduction="max")
