from math import exp, log

import pytest
import torch
from batches import batch_of
from torch import Tensor

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.nt_xent import nt_xent
from fedssl.objectives.simclr import SimClr

TEMPERATURE = 0.2


def pairs(number: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(2, number, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(labels: list[int]) -> Tensor:
    numbers = torch.tensor(labels)
    return (numbers[:, None] == numbers).double()


def slow(both: Tensor, graph: Tensor) -> float:
    rows = [row / row.norm() for row in both.flatten(0, 1)]
    total = 0.0
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        scores = {j: float(row @ rows[j]) / TEMPERATURE for j in others}
        norm = log(sum(exp(score) for score in scores.values()))
        weights = {j: float(graph[i % len(graph), j % len(graph)]) for j in others}
        total -= sum(weights[j] * (scores[j] - norm) for j in others) / sum(weights.values())
    return total / len(rows)


def test_the_graph_of_views_is_the_loss_without_a_graph() -> None:
    both = pairs(6)
    plain = nt_xent(*both, TEMPERATURE).item()
    for graph in (torch.eye(6), 3 * torch.eye(6), torch.zeros(6, 6)):
        assert nt_xent(*both, TEMPERATURE, graph).item() == pytest.approx(plain, abs=1e-12)


def test_the_graph_of_labels_averages_over_all_of_a_class_as_a_slow_loop_does() -> None:
    graph = same([0, 1, 0, 1, 1])
    assert nt_xent(*pairs(5), TEMPERATURE, graph).item() == pytest.approx(slow(pairs(5), graph), abs=1e-9)


def test_a_graph_has_weights_and_rows_of_which_nothing_is_known() -> None:
    graph = torch.tensor([[1, 0.25, 0, 0], [0.25, 0.5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]], dtype=torch.float64)
    known = graph.clone()
    known[2, 2] = 1
    assert nt_xent(*pairs(), TEMPERATURE, graph).item() == pytest.approx(slow(pairs(), known), abs=1e-9)


def test_one_class_of_equal_embeddings_costs_the_log_of_all_others() -> None:
    equal = torch.ones(5, 3, dtype=torch.float64)
    assert nt_xent(equal, equal, TEMPERATURE, torch.ones(5, 5)).item() == pytest.approx(log(9), abs=1e-9)


def test_the_loss_with_a_graph_has_the_gradient_of_its_value() -> None:
    for seed in range(3):
        both = pairs(3, seed).requires_grad_()
        assert torch.autograd.gradcheck(lambda values: nt_xent(*values, TEMPERATURE, same([0, 1, 0])), both)


@pytest.mark.parametrize("graph", [None, torch.eye(2), torch.ones(2, 2)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_two_equal_examples_have_a_finite_loss_and_gradient(graph: Tensor | None, value: float) -> None:
    both = torch.full((2, 2, 3), value, requires_grad=True)
    loss = nt_xent(*both, TEMPERATURE, graph)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(both.grad).all()


@pytest.mark.parametrize("graph", [torch.eye(3), -torch.eye(4), torch.ones(4, 4).tril()])
def test_a_graph_must_be_symmetric_and_of_the_batch(graph: Tensor) -> None:
    with pytest.raises(ValueError, match=r"graph must be a symmetric \[4, 4\]"):
        nt_xent(*pairs(), TEMPERATURE, graph)


def test_a_step_compares_the_views_of_each_image() -> None:
    objective = SimClr(hidden=8, dim=4)
    model = build_bundle(lambda: small_resnet(1, 2), objective, seed=0).eval()
    views = tuple(torch.rand(2, 3, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    step = objective.step(model, batch_of(*views))
    embedded = [model["projector"](model["backbone"](view)) for view in views]
    torch.testing.assert_close(step.loss, nt_xent(*embedded, objective.temperature))
    assert step.metrics["num-negatives"] == 4
    assert "embedding-std" in step.metrics


def test_images_of_a_batch_are_coupled_so_that_halves_have_other_losses() -> None:
    objective = SimClr(hidden=8, dim=4)
    model = build_bundle(lambda: small_resnet(1, 2), objective, seed=0).eval()
    first, second = torch.rand(2, 4, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = objective.step(model, batch_of(first, second)).loss.item()
    halves = [objective.step(model, batch_of(first[part], second[part])).loss.item() for part in ([0, 1], [2, 3])]
    assert abs(whole - sum(halves) / 2) > 0.1
    assert objective.contract.coupling == "batch"
    assert objective.min_batch == 2


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("hidden", 0), ("dim", 0)])
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        SimClr(**{name: value})
