from math import cos, sin, sqrt

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.all4one import All4One, feature_loss, nearest_rows, sinusoids
from fedssl.objectives.nnclr import nnclr_loss
from fedssl.objectives.objective import Population
from fedssl.objectives.queue import unit


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small(**settings: float | str) -> All4One:
    return All4One(hidden=8, dim=4, predictor_hidden=8, layers=1, heads=2, neighbours=3, **settings)


def bundle(objective: All4One) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(1, 2), objective, seed=0, population=Population(100)).double()


def images(number: int, seed: int = 0) -> Tensor:
    return torch.rand(2, number, 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_orthonormal_columns_that_are_their_targets_have_no_feature_loss_and_a_finite_gradient() -> None:
    columns = torch.linalg.qr(draws(6, 4)).Q.requires_grad_()
    loss = feature_loss(columns, columns, columns, columns)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    exact = torch.eye(4, requires_grad=True)
    feature_loss(exact, exact, exact, exact).backward()
    assert torch.isfinite(exact.grad).all()


def test_equal_columns_have_the_feature_loss_five() -> None:
    column = draws(6, 1).expand(6, 4)
    assert feature_loss(column, column, column, column).item() == pytest.approx(5, abs=1e-9)


def test_the_feature_loss_is_that_of_a_slow_loop() -> None:
    first, second, first_target, second_target = draws(4, 6, 3)
    diagonal, others = [], []
    for targets, rows in ((first_target, second), (second_target, first)):
        for i in range(3):
            for j in range(3):
                cosine = float(targets[:, i] @ rows[:, j] / targets[:, i].norm() / rows[:, j].norm())
                (diagonal if i == j else others).append(cosine)
    expected = 5 * sqrt(sum((c - 1) ** 2 for c in diagonal) / 6) + 5 * sqrt(sum(c**2 for c in others) / 12)
    assert feature_loss(first, second, first_target, second_target).item() == pytest.approx(expected, abs=1e-9)


def test_the_feature_loss_has_the_gradient_of_its_value_and_none_towards_targets() -> None:
    for seed in range(3):
        both, targets = draws(2, 4, 3, seed=seed).requires_grad_(), draws(2, 4, 3, seed=9).requires_grad_()
        fixed = targets.detach()
        assert torch.autograd.gradcheck(lambda rows, fixed=fixed: feature_loss(*rows, *fixed), both)
        feature_loss(*both, *targets).backward()
        assert targets.grad is None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_two_equal_examples_have_a_finite_feature_loss_and_gradient(value: float) -> None:
    both = torch.full((2, 2, 3), value, requires_grad=True)
    loss = feature_loss(*both, *both)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(both.grad).all()


def test_positions_are_sines_in_even_and_cosines_in_odd_columns() -> None:
    expected = [[0, 1, 0, 1, 0], [sin(1), cos(1), sin(1e4**-0.4), cos(1e4**-0.4), sin(1e4**-0.8)]]
    torch.testing.assert_close(sinusoids(2, 5), torch.tensor(expected))


def test_the_nearest_rows_come_in_order_and_as_many_as_there_are() -> None:
    rows = unit(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    found = nearest_rows(torch.tensor([[0.0, 5.0], [5.0, 0.1]]), rows, 2)
    assert torch.equal(found, rows[torch.tensor([[2, 1], [0, 1]])])
    assert nearest_rows(rows, rows, 5).shape == (3, 3, 2)


def test_a_step_is_half_of_three_terms_made_of_the_teachers_neighbours() -> None:
    objective = small(centroid_temperature=0.1)
    model = bundle(objective).eval()
    objective.step(model, batch_of(*images(4)))
    with torch.no_grad():
        model["teacher"]["projector"][0].weight.add_(0.1)
    before, views = model["queue"].rows(), images(3, seed=1)
    embeddings = torch.cat([model["projector"](model["backbone"](view)) for view in views])
    targets = unit(torch.cat([model["teacher"]["projector"](model["teacher"]["backbone"](view)) for view in views]))
    rows = nearest_rows(targets, before, 3)
    centroids, predicted = [], []
    for neighbours, prediction in zip(rows, model["predictor"]["centroid"](embeddings), strict=True):
        shifted = torch.stack((prediction, neighbours[0], neighbours[1]))
        centroids.append(model["transformer"](neighbours[None])[0])
        predicted.append(model["transformer"](shifted[None])[0])
    terms = {
        "neighbour-loss": nnclr_loss(rows[:, 0], model["predictor"]["neighbour"](embeddings), 0.2),
        "centroid-loss": nnclr_loss(torch.stack(centroids), torch.stack(predicted), 0.1),
        "feature-loss": feature_loss(*embeddings.chunk(2), *targets.chunk(2)),
    }
    step = objective.step(model, batch_of(*views))
    for name, term in terms.items():
        assert step.metrics[name] == pytest.approx(term.item(), abs=1e-9)
    torch.testing.assert_close(step.loss, sum(terms.values()) / 2)
    torch.testing.assert_close(model["queue"].rows(), torch.cat((before, targets[:3].detach())))
    step.loss.backward()
    assert all(parameter.grad is None for parameter in model["teacher"].parameters())
    trained = ("backbone", "projector", "predictor", "transformer")
    assert all(parameter.grad is not None for group in trained for parameter in model[group].parameters())


def test_a_position_in_the_sequence_matters_to_its_centroid() -> None:
    transformer, sequence = bundle(small())["transformer"].eval(), draws(1, 3, 4)
    swapped = sequence[:, [0, 2, 1]]
    assert not torch.allclose(transformer(sequence), transformer(swapped))
    transformer.positions.zero_()
    torch.testing.assert_close(transformer(sequence), transformer(swapped))


def test_the_smallest_batch_and_an_empty_queue_have_a_finite_loss() -> None:
    objective = All4One(hidden=8, dim=4, predictor_hidden=8, layers=1, heads=2, neighbours=5)
    model = bundle(objective)
    for _ in range(3):  # none, two and four rows are written
        assert torch.isfinite(objective.step(model, batch_of(*images(2))).loss)
    assert objective.min_batch == 2
    assert len(model["queue"]) == 6


def test_images_of_a_batch_are_coupled_so_that_halves_have_other_losses() -> None:
    objective, (first, second) = small(), images(4)
    model = bundle(objective).eval()
    whole = objective.step(model, batch_of(first, second)).loss.item()
    halves = []
    for part in ([0, 1], [2, 3]):
        model["queue"].clear()
        halves.append(objective.step(model, batch_of(first[part], second[part])).loss.item())
    assert abs(whole - sum(halves) / 2) > 0.1
    assert objective.contract.coupling == "batch"


def test_teacher_and_queue_stay_on_the_client_and_are_reset_together() -> None:
    for teacher, left in (("keep", 4), ("ema_global", 4), ("reset", 0)):
        objective = small(teacher=teacher)
        model = bundle(objective)
        assert list(model) == ["backbone", "projector", "predictor", "transformer", "teacher", "queue"]
        assert objective.contract.private_groups == {"teacher", "queue"}
        objective.step(model, batch_of(*images(4)))
        with torch.no_grad():
            model["projector"][0].weight.add_(1.0)
        objective.begin_round(model, first=False)
        assert len(model["queue"]) == left
        copied = torch.equal(model["teacher"]["projector"][0].weight, model["projector"][0].weight)
        assert copied == (teacher == "reset")


def test_the_teacher_follows_after_a_step() -> None:
    objective = small(momentum_start=0.5)
    model = bundle(objective)
    with torch.no_grad():
        model["projector"][0].weight.add_(1.0)
    objective.after_step(model, 0.0)
    gap = model["projector"][0].weight - model["teacher"]["projector"][0].weight
    torch.testing.assert_close(gap, torch.full_like(gap, 0.5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("centroid_temperature", 0.0),
        ("queue_size", 0),
        ("neighbours", 0),
        ("hidden", 0),
        ("dim", 1),
        ("dim", 12),
        ("predictor_hidden", 0),
        ("layers", 0),
        ("heads", 0),
        ("dropout", 1.5),
        ("momentum_start", 2.0),
        ("momentum_end", -1.0),
    ],
)
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        All4One(**{name: value})
