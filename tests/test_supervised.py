from math import exp, log

import pytest
import torch
from batches import batch_of
from pixel_logits import logit_model, view_of
from torch import Tensor

from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import UNKNOWN, Population
from fedssl.objectives.supervised import Supervised, accuracy, cross_entropy


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_uniform_logits_cost_the_log_of_the_classes_whatever_the_smoothing(smoothing: float) -> None:
    loss = cross_entropy(torch.full((4, 10), 0.7, dtype=torch.float64), torch.tensor([0, 3, 3, 9]), smoothing)
    assert loss.item() == pytest.approx(log(10), abs=1e-9)


def test_the_least_smoothed_loss_is_the_entropy_of_the_target() -> None:
    target = torch.tensor([[0.1 / 4 + 0.9, 0.1 / 4, 0.1 / 4, 0.1 / 4]], dtype=torch.float64)
    entropy = -(target * target.log()).sum().item()
    assert cross_entropy(target.log(), torch.tensor([0]), 0.1).item() == pytest.approx(entropy, abs=1e-9)
    assert cross_entropy(target.log() + 0.01 * noise(1, 4), torch.tensor([0]), 0.1).item() > entropy


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_is_that_of_a_slow_loop_and_has_its_gradient(seed: int) -> None:
    logits, labels, total = noise(3, 5, seed=seed), torch.tensor([4, 0, 2]), 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total -= log(exp(row[label]) / sum(exp(value) for value in row)) / 3
    assert cross_entropy(logits, labels).item() == pytest.approx(total, abs=1e-9)
    assert torch.autograd.gradcheck(lambda rows: cross_entropy(rows, labels), logits.requires_grad_())


def test_no_examples_cost_nothing_and_have_a_gradient_of_zeros() -> None:
    logits = noise(0, 3).requires_grad_()
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert (loss.item(), logits.grad.shape) == (0.0, (0, 3))
    assert accuracy(logits, torch.zeros(0, dtype=torch.int64)) == {}


def test_half_precision_is_left_before_the_logarithm() -> None:
    assert cross_entropy(torch.zeros(2, 3, dtype=torch.float16), torch.tensor([0, 1])).dtype == torch.float32
    assert cross_entropy(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 1])).dtype == torch.float64


def test_a_step_learns_from_the_labelled_examples_alone() -> None:
    objective, logits = Supervised(), noise(4, 3)
    model, labels = logit_model(objective, 3), torch.tensor([2, UNKNOWN, 0, UNKNOWN])
    step = objective.step(model, batch_of(view_of(logits), labels=labels))
    assert step.loss.item() == pytest.approx(cross_entropy(logits[[0, 2]], labels[[0, 2]]).item(), abs=1e-9)
    right = (logits[[0, 2]].argmax(dim=1) == labels[[0, 2]]).double().mean().item()
    assert step.metrics == {"accuracy": right}


def test_a_step_without_labels_costs_nothing_and_moves_nothing() -> None:
    objective = Supervised()
    model = logit_model(objective, 3)
    step = objective.step(model, batch_of(view_of(noise(4, 3))))
    step.loss.backward()
    assert (step.loss.item(), dict(step.metrics)) == (0.0, {})
    assert [parameter.grad.abs().sum().item() for parameter in model.parameters()] == [0.0, 0.0]


def test_the_classifier_is_as_wide_as_the_data_has_classes() -> None:
    encoder = Encoder(torch.nn.Identity(), 5)
    classifier = Supervised().build(encoder, Population(10, 7))["classifier"]
    assert (classifier.in_features, classifier.out_features) == (5, 7)
    with pytest.raises(ValueError, match=r"num_classes must be at least 2: .* got 0"):
        Supervised().build(encoder, Population(10))


def test_only_labelled_examples_are_asked_for_unless_a_procedure_gives_labels_itself() -> None:
    assert Supervised().needs_labels
    assert not Supervised(labelled_only=False).needs_labels
    assert Supervised().contract.coupling == "per_example"


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"smoothing must be between 0 and 1, got 1\.5"):
        Supervised(smoothing=1.5)
