from math import exp, log

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import arrays, build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.diet import Diet, diet
from fedssl.objectives.objective import Population


def images(number: int = 3) -> Tensor:
    return torch.rand(number, 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def model_of(objective: Diet, num_examples: int = 5) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(1, width=4, norm="group"), objective, 0, Population(num_examples)).double()


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 0.8, 1.0])
def test_uniform_logits_cost_the_log_of_the_rows_whatever_the_smoothing(smoothing: float) -> None:
    logits = torch.zeros(4, 7, dtype=torch.float64)
    assert diet(logits, torch.arange(4), smoothing).item() == pytest.approx(log(7), abs=1e-9)


def test_the_least_loss_is_the_entropy_of_the_smoothed_target() -> None:
    rows, smoothing = 50_000, 0.8
    target = torch.full((1, rows), smoothing / rows, dtype=torch.float64)
    target[0, 17] += 1 - smoothing
    entropy = -(target * target.log()).sum().item()
    place = torch.tensor([17])
    assert diet(target.log(), place, smoothing).item() == pytest.approx(entropy, abs=1e-9)
    assert entropy == pytest.approx(9.1561, abs=5e-5)
    assert diet(target.log() + 0.01 * torch.randn_like(target), place, smoothing).item() > entropy
    assert log(rows) == pytest.approx(10.8198, abs=5e-5)


def test_the_loss_is_that_of_a_slow_loop_and_has_its_gradient() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    places, smoothing, total = torch.tensor([4, 0, 2]), 0.8, 0.0
    for row, place in zip(logits.tolist(), places.tolist(), strict=True):
        denominator = sum(exp(logit) for logit in row)
        for k, logit in enumerate(row):
            total -= (smoothing / 5 + (1 - smoothing) * (k == place)) * (logit - log(denominator))
    assert diet(logits, places, smoothing).item() == pytest.approx(total / 3, abs=1e-9)
    assert torch.autograd.gradcheck(lambda rows: diet(rows, places, smoothing), logits.requires_grad_())


def test_a_row_that_is_no_examples_gets_the_same_target_as_the_rows_of_others() -> None:
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(diet(logits, torch.tensor([0]), 0.8), logits)
    torch.testing.assert_close(slope[0], torch.tensor([0.25 - 0.4, 0.05, 0.05, 0.05], dtype=torch.float64))


@pytest.mark.parametrize(("num_examples", "given", "rows"), [(5, None, 5), (0, None, 1), (5, 9, 9), (0, 9, 9)])
def test_the_head_has_a_row_for_each_example(num_examples: int, given: int | None, rows: int) -> None:
    model = model_of(Diet(num_classes=given), num_examples)
    assert {name: array.shape for name, array in arrays(model, ["head"]).items()} == {"head.weight": (rows, 16)}


def test_rows_name_examples_and_never_leave_the_client() -> None:
    assert Diet.contract.private_groups == {"head"}
    assert Diet.contract.coupling == "per_example"


def test_an_example_is_compared_with_its_own_row() -> None:
    objective, clips = Diet(smoothing=0.0), images(3)
    model = model_of(objective)
    with torch.no_grad():
        features = model["backbone"](clips)
        model["head"].weight.zero_()
        model["head"].weight[:3] = 100 * torch.linalg.pinv(features).T  # each feature meets one row alone
    step = objective.step(model, batch_of(clips))
    assert step.metrics == {"accuracy": 1.0}
    assert step.loss.item() == pytest.approx(0, abs=1e-9)
    assert objective.step(model, batch_of(clips.flip(0))).metrics["accuracy"] == pytest.approx(1 / 3)


def test_the_gradient_of_a_batch_is_the_mean_of_those_of_its_examples() -> None:
    objective, clips = Diet(), images(1)
    model = model_of(objective)
    parameters = list(model.parameters())
    batch = torch.cat((clips, clips.flip(3)))
    logits = model["head"](model["backbone"](batch))
    together = torch.autograd.grad(objective.step(model, batch_of(batch)).loss, parameters)
    singles = [diet(logits[i : i + 1], torch.tensor([i]), 0.8) for i in range(2)]
    alone = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in singles]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("clips", [torch.zeros(1, 1, 1, 8, 8), torch.ones(4, 1, 1, 8, 8)])
def test_one_example_and_equal_ones_have_finite_gradients(clips: Tensor) -> None:
    objective = Diet()
    model = model_of(objective)
    objective.step(model, batch_of(clips.double())).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "value"), [("smoothing", -0.1), ("smoothing", 1.1), ("num_classes", 0)])
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        Diet(**{name: value})


def test_fewer_rows_than_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least the 5 examples, got 4"):
        model_of(Diet(num_classes=4), num_examples=5)
