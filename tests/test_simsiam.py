import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.objective import Population
from fedssl.objectives.simsiam import SimSiam, negative_cosine, simsiam_loss


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bundle(objective: SimSiam) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(1, 2), objective, seed=0).double()


def images(number: int) -> Tensor:
    return torch.rand(2, number, 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("sign", "loss"), [(1.0, -1.0), (-1.0, 1.0)])
def test_equal_directions_cost_minus_one_and_opposite_ones_one(sign: float, loss: float) -> None:
    first, second = draws(2, 5, 3)
    found = simsiam_loss(sign * 2 * second, sign * 3 * first, first, second)
    assert found.item() == pytest.approx(loss, abs=1e-9)


def test_the_loss_is_that_of_a_slow_loop() -> None:
    first, second, first_target, second_target = draws(4, 6, 3)
    total = 0.0
    for rows, targets in ((first, second_target), (second, first_target)):
        total -= sum(
            float(row @ target / row.norm() / target.norm()) for row, target in zip(rows, targets, strict=True)
        )
    assert simsiam_loss(first, second, first_target, second_target).item() == pytest.approx(total / 12, abs=1e-9)


def test_the_loss_has_the_gradient_of_its_value_and_none_towards_targets() -> None:
    for seed in range(3):
        predictions, targets = draws(2, 4, 3, seed=seed).requires_grad_(), draws(2, 4, 3, seed=9).requires_grad_()
        fixed = targets.detach()
        assert torch.autograd.gradcheck(lambda both, fixed=fixed: simsiam_loss(*both, *fixed), predictions)
        simsiam_loss(*predictions, *targets).backward()
        assert targets.grad is None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_pair_has_a_finite_loss_and_gradient(value: float) -> None:
    prediction = torch.full((1, 3), value, requires_grad=True)
    loss = negative_cosine(prediction, torch.full((1, 3), value))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prediction.grad).all()


def test_low_precision_is_left_before_the_cosine() -> None:
    assert negative_cosine(torch.ones(2, 3).half(), torch.ones(2, 3).half()).dtype == torch.float32


def test_a_step_predicts_each_view_from_the_other() -> None:
    objective = SimSiam(hidden=8, dim=6, bottleneck=3)
    model, views = bundle(objective).eval(), images(3)
    embeddings = [model["projector"](model["backbone"](view)) for view in views]
    predictions = [model["predictor"](embedding) for embedding in embeddings]
    loss = objective.step(model, batch_of(*views)).loss
    torch.testing.assert_close(loss, simsiam_loss(*predictions, *embeddings))


def test_an_example_has_its_own_gradient_without_batch_normalisation() -> None:
    objective = SimSiam(hidden=8, dim=6, bottleneck=3, norm="group")
    model, (first, second) = bundle(objective).eval(), images(4)
    weights = [model["backbone"].body[0][0].weight, model["predictor"][0].weight]
    whole = torch.autograd.grad(objective.step(model, batch_of(first, second)).loss, weights)
    alone = [batch_of(first[i : i + 1], second[i : i + 1]) for i in range(4)]
    single = [torch.autograd.grad(objective.step(model, batch).loss, weights) for batch in alone]
    for together, apart in zip(whole, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(together, torch.stack(apart).mean(dim=0))
    assert (objective.contract.coupling, objective.min_batch) == ("per_example", 1)
    assert SimSiam().min_batch == 2


def test_a_collapse_that_the_loss_hides_is_in_the_metrics() -> None:
    objective = SimSiam(hidden=8, dim=6, bottleneck=3, norm="none")
    model = bundle(objective)
    model["predictor"] = nn.Identity()
    assert objective.step(model, batch_of(*images(4))).metrics["embedding-std"] > 0.01
    with torch.no_grad():
        model["projector"][-1].weight.zero_()
    step = objective.step(model, batch_of(*images(4)))
    assert step.loss.item() == pytest.approx(-1)
    assert step.metrics["embedding-std"] == pytest.approx(0, abs=1e-6)


def test_a_projector_ends_in_a_normalisation_without_scale() -> None:
    last = SimSiam(hidden=8, dim=6, bottleneck=3).build(small_resnet(1, 2), Population(0))["projector"][-1]
    assert isinstance(last, nn.BatchNorm1d)
    assert not last.affine


@pytest.mark.parametrize("name", ["hidden", "dim", "bottleneck"])
def test_arguments_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SimSiam(**{name: 0})
