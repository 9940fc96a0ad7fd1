from typing import Literal

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.byol import Byol, byol_loss
from fedssl.objectives.simsiam import simsiam_loss

EAST = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
NORTH = torch.tensor([[0.0, 1.0]], dtype=torch.float64)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bundle(objective: Byol) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(1, 2), objective, seed=0).double()


def images(number: int) -> Tensor:
    return torch.rand(2, number, 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("target", "loss"), [(EAST, 0.0), (NORTH, 2.0), (-EAST, 4.0)])
def test_a_direction_costs_nothing_when_equal_2_when_orthogonal_4_when_opposite(target: Tensor, loss: float) -> None:
    assert byol_loss(EAST, EAST, EAST, target).item() == pytest.approx(loss, abs=1e-9)
    assert byol_loss(EAST, EAST, target, target).item() == pytest.approx(2 * loss, abs=1e-9)


def test_the_loss_is_the_squared_distance_on_the_sphere_of_a_slow_loop() -> None:
    first, second, first_target, second_target = draws(4, 6, 3)
    total = 0.0
    for rows, targets in ((first, second_target), (second, first_target)):
        for row, target in zip(rows, targets, strict=True):
            total += float(((row / row.norm() - target / target.norm()) ** 2).sum())
    assert byol_loss(first, second, first_target, second_target).item() == pytest.approx(total / 6, abs=1e-9)


def test_lengths_do_not_matter() -> None:
    first, second, first_target, second_target = draws(4, 6, 3)
    loss = byol_loss(first, second, first_target, second_target).item()
    assert byol_loss(3 * first, 0.1 * second, 7 * first_target, 2 * second_target).item() == pytest.approx(loss)


def test_the_loss_is_four_and_four_times_that_of_simsiam() -> None:
    rows = draws(4, 6, 3)
    assert byol_loss(*rows).item() == pytest.approx(4 + 4 * simsiam_loss(*rows).item(), abs=1e-9)


def test_the_loss_has_the_gradient_of_its_value_and_none_towards_targets() -> None:
    for seed in range(3):
        predictions, targets = draws(2, 4, 3, seed=seed).requires_grad_(), draws(2, 4, 3, seed=9).requires_grad_()
        fixed = targets.detach()
        assert torch.autograd.gradcheck(lambda both, fixed=fixed: byol_loss(*both, *fixed), predictions)
        byol_loss(*predictions, *targets).backward()
        assert targets.grad is None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_pair_has_a_finite_loss_and_gradient(value: float) -> None:
    rows = torch.full((4, 1, 3), value, requires_grad=True)
    loss = byol_loss(*rows)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(rows.grad).all()


def test_a_step_predicts_the_teacher_of_the_other_view_and_does_not_train_it() -> None:
    objective = Byol(hidden=8, dim=4)
    model, views = bundle(objective).eval(), images(3)
    with torch.no_grad():
        model["teacher"]["projector"][0].weight.add_(0.1)
    predictions = [model["predictor"](model["projector"](model["backbone"](view))) for view in views]
    targets = [model["teacher"]["projector"](model["teacher"]["backbone"](view)) for view in views]
    loss = objective.step(model, batch_of(*views)).loss
    torch.testing.assert_close(loss, byol_loss(*predictions, *targets))
    loss.backward()
    assert all(parameter.grad is None for parameter in model["teacher"].parameters())
    assert all(
        parameter.grad is not None for group in ("backbone", "projector") for parameter in model[group].parameters()
    )


def test_an_example_has_its_own_gradient_without_batch_normalisation() -> None:
    objective = Byol(hidden=8, dim=4, norm="group")
    model, (first, second) = bundle(objective).eval(), images(4)
    weights = [model["backbone"].body[0][0].weight, model["predictor"][0].weight]
    whole = torch.autograd.grad(objective.step(model, batch_of(first, second)).loss, weights)
    alone = [batch_of(first[i : i + 1], second[i : i + 1]) for i in range(4)]
    single = [torch.autograd.grad(objective.step(model, batch).loss, weights) for batch in alone]
    for together, apart in zip(whole, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(together, torch.stack(apart).mean(dim=0))
    assert (objective.contract.coupling, objective.min_batch) == ("per_example", 1)
    assert Byol().min_batch == 2


def test_the_teacher_stays_on_the_client_and_copies_what_came_at_first() -> None:
    objective = Byol(hidden=8, dim=4)
    model = bundle(objective)
    assert list(model) == ["backbone", "projector", "predictor", "teacher"]
    assert objective.contract.private_groups == {"teacher"}
    with torch.no_grad():
        model["projector"][0].weight.add_(1.0)
    objective.begin_round(model, first=True)
    assert torch.equal(model["teacher"]["projector"][0].weight, model["projector"][0].weight)


@pytest.mark.parametrize(("teacher", "share"), [("reset", 0.0), ("keep", 1.0), ("ema_global", 0.9)])
def test_a_round_resets_keeps_or_moves_the_teacher(
    teacher: Literal["reset", "keep", "ema_global"], share: float
) -> None:
    objective = Byol(hidden=8, dim=4, momentum_start=0.9, teacher=teacher)
    model = bundle(objective)
    with torch.no_grad():
        model["projector"][0].weight.add_(1.0)
    objective.begin_round(model, first=False)
    gap = model["projector"][0].weight - model["teacher"]["projector"][0].weight
    torch.testing.assert_close(gap, torch.full_like(gap, share))


def test_the_teacher_follows_with_the_momentum_of_the_run() -> None:
    objective = Byol(hidden=8, dim=4, momentum_start=0.8, momentum_end=1.0)
    model = bundle(objective)
    with torch.no_grad():
        model["projector"][0].weight.add_(1.0)
    for progress, share in ((0.0, 0.8), (0.5, 0.8 * 0.9), (1.0, 0.8 * 0.9)):
        objective.after_step(model, progress)
        gap = model["projector"][0].weight - model["teacher"]["projector"][0].weight
        torch.testing.assert_close(gap, torch.full_like(gap, share))


@pytest.mark.parametrize(
    ("name", "value"), [("hidden", 0), ("dim", 0), ("momentum_start", -0.1), ("momentum_end", 1.1)]
)
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        Byol(**{name: value})
