from math import exp, log

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.nnclr import Nnclr, nearest, nnclr_loss
from fedssl.objectives.objective import Population
from fedssl.objectives.queue import unit

TEMPERATURE = 0.2


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bundle(objective: Nnclr) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(1, 2), objective, seed=0, population=Population(100)).double()


def images(number: int, seed: int = 0) -> Tensor:
    return torch.rand(2, number, 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small(**settings: str) -> Nnclr:
    return Nnclr(hidden=8, dim=4, predictor_hidden=8, **settings)


def test_a_queue_of_the_orthonormal_batch_itself_gives_the_known_cost() -> None:
    embeddings = torch.eye(6, dtype=torch.float64)[:4]
    neighbours = nearest(3 * embeddings, embeddings)
    found = nnclr_loss(neighbours.repeat(2, 1), 5 * embeddings.repeat(2, 1), TEMPERATURE).item()
    assert found == pytest.approx(log(1 + 3 * exp(-1 / TEMPERATURE)), abs=1e-9)


def test_equal_predictions_cost_the_log_of_the_batch() -> None:
    assert nnclr_loss(draws(10, 3), draws(1, 3).expand(10, 3), TEMPERATURE).item() == pytest.approx(log(5), abs=1e-9)


def test_the_nearest_row_is_returned_as_it_is_and_the_first_of_equals() -> None:
    rows = unit(torch.tensor([[0.0, 1.0], [1.0, 0.1], [1.0, -0.1]]))
    assert torch.equal(nearest(torch.tensor([[0.1, 9.0], [7.0, 0.0]]), rows), rows[[0, 1]])
    assert torch.equal(nearest(torch.tensor([[7.0, 0.0]]), rows.flip(0)), rows[2:])


def test_the_loss_is_that_of_a_slow_loop() -> None:
    neighbours, predictions = draws(2, 10, 3)
    total = 0.0
    for anchors, others in ((neighbours[:5], predictions[5:]), (neighbours[5:], predictions[:5])):
        for i, anchor in enumerate(anchors):
            scores = [float(anchor @ other / anchor.norm() / other.norm()) / TEMPERATURE for other in others]
            total += log(sum(exp(score) for score in scores)) - scores[i]
    assert nnclr_loss(neighbours, predictions, TEMPERATURE).item() == pytest.approx(total / 10, abs=1e-9)


def test_the_loss_has_the_gradient_of_its_value() -> None:
    for seed in range(3):
        both = draws(2, 6, 3, seed=seed).requires_grad_()
        assert torch.autograd.gradcheck(lambda rows: nnclr_loss(*rows, TEMPERATURE), both)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_two_equal_examples_have_a_finite_loss_and_gradient(value: float) -> None:
    both = torch.full((2, 4, 3), value, requires_grad=True)
    loss = nnclr_loss(*both, TEMPERATURE)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(both.grad).all()


def test_before_anything_is_written_an_embedding_is_its_own_neighbour_without_a_gradient() -> None:
    objective, views = small(), images(3)
    model = bundle(objective).eval()
    embeddings = torch.cat([model["projector"](model["backbone"](view)) for view in views])
    loss = objective.step(model, batch_of(*views)).loss
    expected = nnclr_loss(embeddings.detach(), model["predictor"](embeddings), TEMPERATURE)
    torch.testing.assert_close(loss, expected)
    weight = model["projector"][0].weight
    torch.testing.assert_close(torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight))
    torch.testing.assert_close(model["queue"].rows(), unit(embeddings[:3].detach()))


def test_a_step_contrasts_neighbours_of_the_queue_and_then_writes_the_first_view() -> None:
    objective, views = small(), images(3, seed=1)
    model = bundle(objective).eval()
    objective.step(model, batch_of(*images(4)))
    before = model["queue"].rows()
    embeddings = torch.cat([model["projector"](model["backbone"](view)) for view in views])
    step = objective.step(model, batch_of(*views))
    expected = nnclr_loss(nearest(embeddings, before), model["predictor"](embeddings), TEMPERATURE)
    torch.testing.assert_close(step.loss, expected)
    torch.testing.assert_close(model["queue"].rows(), torch.cat((before, unit(embeddings[:3].detach()))))
    assert "embedding-std" in step.metrics


def test_images_of_a_batch_are_coupled_so_that_halves_have_other_losses() -> None:
    objective, (first, second) = small(), images(4)
    model = bundle(objective).eval()
    whole = objective.step(model, batch_of(first, second)).loss.item()
    halves = []
    for part in ([0, 1], [2, 3]):
        model["queue"].clear()
        halves.append(objective.step(model, batch_of(first[part], second[part])).loss.item())
    assert abs(whole - sum(halves) / 2) > 0.1
    assert (objective.contract.coupling, objective.min_batch) == ("batch", 2)


def test_a_round_keeps_or_empties_the_queue_which_stays_on_the_client() -> None:
    for queue, left in (("keep", 4), ("reset", 0)):
        objective = small(queue=queue)
        model = bundle(objective)
        objective.step(model, batch_of(*images(4)))
        objective.begin_round(model, first=False)
        assert len(model["queue"]) == left
        assert list(model) == ["backbone", "projector", "predictor", "queue"]
        assert objective.contract.private_groups == {"queue"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("queue_size", 0), ("hidden", 0), ("dim", 0), ("predictor_hidden", 0), ("queue", "half")],
)
def test_arguments_out_of_range_are_named(name: str, value: float | str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        Nnclr(**{name: value})
