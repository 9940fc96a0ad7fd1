from math import lgamma, log, pi

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.vi_simsiam import SphericalPredictor, ViSimSiam, power_spherical_log_density


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def circle(number: int) -> Tensor:
    angles = torch.arange(number, dtype=torch.float64) * 2 * pi / number
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def bundle(objective: ViSimSiam) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(1, 2), objective, seed=0).double()


def images(number: int) -> Tensor:
    return torch.rand(2, number, 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dim", [2, 3, 16, 2048])
def test_no_concentration_is_the_uniform_distribution(dim: int) -> None:
    area = log(2) + dim / 2 * log(pi) - lgamma(dim / 2)
    found = power_spherical_log_density(*draws(2, 3, dim), torch.zeros(3, dtype=torch.float64))
    assert found.tolist() == pytest.approx([-area] * 3, rel=1e-12, abs=1e-9)


def test_the_mean_is_denser_than_what_is_orthogonal_to_it_by_the_concentration() -> None:
    axes, concentrations = torch.eye(3, dtype=torch.float64)[:2], torch.tensor([0.5, 20.0], dtype=torch.float64)
    at_mean = power_spherical_log_density(axes, axes, concentrations)
    aside = power_spherical_log_density(axes.flip(0), axes, concentrations)
    assert (at_mean - aside).tolist() == pytest.approx([0.5 * log(2), 20 * log(2)], abs=1e-9)


def test_the_density_of_the_circle_integrates_to_one() -> None:
    points = circle(1000)
    for concentration in (1.0, 3.0, 50.0):
        around = torch.full((1000,), concentration, dtype=torch.float64)
        density = power_spherical_log_density(points, points[100:101].expand(1000, 2), around).exp()
        assert density.mean().item() * 2 * pi == pytest.approx(1, abs=1e-9)


def test_the_entropy_on_the_circle_is_the_known_one() -> None:
    concentration = torch.full((1000,), 3.0, dtype=torch.float64)
    density = power_spherical_log_density(circle(1000), torch.eye(2)[:1].double().expand(1000, 2), concentration)
    entropy = -(density.exp() * density).mean().item() * 2 * pi
    b = torch.tensor(0.5, dtype=torch.float64)
    a = b + 3
    volume = (a + b) * log(2) + b * log(pi) + torch.lgamma(a) - torch.lgamma(a + b)
    assert entropy == pytest.approx(float(volume - 3 * (log(2) + torch.digamma(a) - torch.digamma(a + b))), abs=1e-9)
    assert entropy == pytest.approx(1.13361, abs=1e-5)


def test_the_density_is_that_of_a_slow_loop() -> None:
    points, directions = draws(2, 5, 4)
    concentrations = torch.linspace(0.1, 30, 5, dtype=torch.float64)
    for i, found in enumerate(power_spherical_log_density(points, directions, concentrations).tolist()):
        kappa, b = float(concentrations[i]), 1.5
        cosine = float(points[i] @ directions[i] / points[i].norm() / directions[i].norm())
        log_volume = (2 * b + kappa) * log(2) + b * log(pi) + lgamma(b + kappa) - lgamma(2 * b + kappa)
        assert found == pytest.approx(kappa * log(1 + cosine) - log_volume, abs=1e-9)


def test_with_one_concentration_directions_are_ranked_by_cosine() -> None:
    points, direction = draws(50, 4), draws(1, 4, seed=1).expand(50, 4)
    density = power_spherical_log_density(points, direction, torch.full((50,), 5.0, dtype=torch.float64))
    cosines = torch.nn.functional.cosine_similarity(points, direction)
    assert torch.equal(density.argsort(), cosines.argsort())


def test_the_density_has_the_gradient_of_its_value() -> None:
    for seed in range(3):
        points, directions = draws(2, 3, 4, seed=seed).requires_grad_()
        concentrations = torch.rand(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1
        inputs = (points, directions, concentrations.requires_grad_())
        assert torch.autograd.gradcheck(power_spherical_log_density, inputs)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("concentration", [0.0, 1e4])
def test_zero_equal_and_opposite_vectors_have_a_finite_density_and_gradient(value: float, concentration: float) -> None:
    directions = torch.full((1, 8), value, requires_grad=True)
    concentrations = torch.tensor([concentration], requires_grad=True)
    density = power_spherical_log_density(torch.ones(1, 8), directions, concentrations).sum()
    density.backward()
    assert torch.isfinite(density)
    assert torch.isfinite(directions.grad).all()
    assert torch.isfinite(concentrations.grad).all()


def test_single_precision_is_enough_at_the_published_width() -> None:
    points, directions = draws(2, 3, 2048)
    concentrations = torch.tensor([2.0, 2e3, 2e5], dtype=torch.float64, requires_grad=True)
    values, slopes = [], []
    for dtype in (torch.float64, torch.float32):
        density = power_spherical_log_density(points.to(dtype), directions.to(dtype), concentrations.to(dtype))
        values.append(density.double())
        slopes.append(torch.autograd.grad(density.sum(), concentrations)[0])
    torch.testing.assert_close(*values, rtol=1e-5, atol=0)
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-5)


def test_a_concentration_is_positive_and_bounded() -> None:
    predictor = SphericalPredictor(4, 3, "none")
    _, concentrations = predictor(torch.tensor([[-1e6] * 4, [1e6] * 4]) * predictor.concentration.weight.sign())
    assert concentrations.tolist() == pytest.approx([4e-3, 400])
    predictor.concentration.bias.data.zero_()
    assert predictor(torch.zeros(1, 4))[1].item() == pytest.approx(4 * (log(2) + 1e-3))


def test_a_step_scores_each_view_under_the_prediction_from_the_other_without_a_gradient_of_targets() -> None:
    objective = ViSimSiam(hidden=8, dim=6, bottleneck=3)
    model, views = bundle(objective).eval(), images(3)
    embeddings = [model["projector"](model["backbone"](view)) for view in views]
    (first, first_sure), (second, second_sure) = (model["predictor"](embedding) for embedding in embeddings)
    scores = power_spherical_log_density(embeddings[1].detach(), first, first_sure)
    others = power_spherical_log_density(embeddings[0].detach(), second, second_sure)
    step, expected = objective.step(model, batch_of(*views)), -0.5 * (scores.mean() + others.mean()) / 6
    torch.testing.assert_close(step.loss, expected)
    weight = model["projector"][0].weight
    torch.testing.assert_close(torch.autograd.grad(step.loss, weight), torch.autograd.grad(expected, weight))
    assert step.metrics["concentration"] == pytest.approx(torch.cat((first_sure, second_sure)).mean().item())
    assert "embedding-std" in step.metrics


def test_an_example_has_its_own_gradient_without_batch_normalisation() -> None:
    objective = ViSimSiam(hidden=8, dim=6, bottleneck=3, norm="group")
    model, (first, second) = bundle(objective).eval(), images(4)
    weights = [model["backbone"].body[0][0].weight, model["predictor"].concentration.weight]
    whole = torch.autograd.grad(objective.step(model, batch_of(first, second)).loss, weights)
    alone = [batch_of(first[i : i + 1], second[i : i + 1]) for i in range(4)]
    single = [torch.autograd.grad(objective.step(model, batch).loss, weights) for batch in alone]
    for together, apart in zip(whole, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(together, torch.stack(apart).mean(dim=0))
    assert (objective.contract.coupling, objective.min_batch) == ("per_example", 1)
    assert ViSimSiam().min_batch == 2


@pytest.mark.parametrize(("name", "value"), [("hidden", 0), ("dim", 1), ("bottleneck", 0)])
def test_arguments_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least {value + 1}, got {value}"):
        ViSimSiam(**{name: value})
