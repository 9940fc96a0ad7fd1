from math import exp, log, pi, sinh

import numpy as np
import pytest
import torch
from batches import batch_of
from scipy.special import gammaln, ive
from torch import Tensor

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.entropy_reconstruction import (
    Bound,
    EntropyReconstruction,
    continuous,
    discrete,
    log_vmf_scale,
)

KAPPA = 10.0


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(bound: Bound) -> float:
    return (bound.entropy - bound.reconstruction).item()


def test_equal_directions_share_nothing() -> None:
    same = torch.ones(5, 3, dtype=torch.float64)
    assert value(continuous(same, 2 * same, KAPPA)) == pytest.approx(0, abs=1e-9)


def test_the_bound_of_orthonormal_pairs_is_known() -> None:
    pairs = torch.eye(4, dtype=torch.float64)
    expected = log(4) - log(1 + 3 * exp(-KAPPA))
    assert value(continuous(pairs, 3 * pairs, KAPPA)) == pytest.approx(expected, abs=1e-9)


def test_the_scale_of_a_density_on_the_common_sphere_is_known() -> None:
    for kappa in (0.1, 3.0, 10.0, 50.0):
        assert log_vmf_scale(3, kappa) == pytest.approx(log(kappa / (4 * pi * sinh(kappa))), abs=1e-9)


@pytest.mark.parametrize(("dim", "kappa"), [(2, 1e-3), (2, 10.0), (5, 700.0), (64, 10.0), (256, 200.0)])
def test_the_scale_of_any_density_is_that_of_the_bessel_function(dim: int, kappa: float) -> None:
    order = dim / 2 - 1
    expected = order * log(kappa) - dim / 2 * log(2 * pi) - log(ive(order, kappa)) - kappa
    assert log_vmf_scale(dim, kappa) == pytest.approx(expected, rel=1e-12, abs=1e-9)


def test_the_scale_of_a_flat_density_is_one_over_the_sphere_where_the_bessel_function_underflows() -> None:
    dim = 2048
    assert log_vmf_scale(dim, 1e-6) == pytest.approx(gammaln(dim / 2) - log(2) - dim / 2 * log(pi), abs=1e-9)


def test_a_density_on_the_circle_integrates_to_one() -> None:
    angles = np.linspace(0, 2 * pi, 1000, endpoint=False)
    density = np.exp(log_vmf_scale(2, 3.0) + 3.0 * np.cos(angles))
    assert density.mean() * 2 * pi == pytest.approx(1, abs=1e-9)


def test_the_entropy_of_distributions_is_that_of_their_mean() -> None:
    hard = 1e3  # makes directions along an axis one-hot
    same, all_axes = torch.eye(4).double()[:1].expand(4, 4), torch.eye(4).double()
    equal = torch.ones(4, 4).double()
    for rows, entropy, reconstruction in ((equal, log(4), log(4)), (same, 0, 0), (all_axes, log(4), 0)):
        assert [part.item() for part in discrete(rows, rows, hard)] == pytest.approx(
            [entropy, reconstruction], abs=1e-9
        )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_continuous_bound_is_that_of_a_slow_loop_and_has_its_gradient(seed: int) -> None:
    views = noise(2, 4, 3, seed=seed)
    unit = [[row / row.norm() for row in view] for view in views]
    scale = KAPPA / (4 * pi * sinh(KAPPA))
    entropy = reconstruction = 0.0
    for view, other in (unit, unit[::-1]):
        for row, partner in zip(view, other, strict=True):
            density = sum(scale * exp(KAPPA * float(row @ kernel)) for kernel in view) / 4
            entropy -= log(density) / 8
            reconstruction -= log(scale * exp(KAPPA * float(row @ partner))) / 8
    bound = continuous(*views, KAPPA)
    assert [part.item() for part in bound] == pytest.approx([entropy, reconstruction], abs=1e-9)
    assert torch.autograd.gradcheck(lambda both: tuple(continuous(*both, KAPPA)), views.requires_grad_())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_discrete_bound_is_that_of_a_slow_loop_and_has_its_gradient(seed: int) -> None:
    views = noise(2, 4, 3, seed=seed)
    shares = [[(KAPPA * row / row.norm()).exp() for row in view] for view in views]
    shares = [[(row / row.sum()).tolist() for row in view] for view in shares]
    entropy = reconstruction = 0.0
    for view, other in (shares, shares[::-1]):
        for k in range(3):
            mean = sum(row[k] for row in view) / 4
            entropy -= mean * log(mean) / 2
            reconstruction -= sum(row[k] * log(partner[k]) for row, partner in zip(view, other, strict=True)) / 8
    bound = discrete(*views, KAPPA)
    assert [part.item() for part in bound] == pytest.approx([entropy, reconstruction], abs=1e-9)
    assert torch.autograd.gradcheck(lambda both: tuple(discrete(*both, KAPPA)), views.requires_grad_())


@pytest.mark.parametrize("bound", [continuous, discrete])
@pytest.mark.parametrize("views", [noise(2, 2, 3), torch.zeros(2, 4, 3), torch.ones(2, 4, 3)])
def test_bounds_and_gradients_are_finite_at_the_edges(bound: object, views: Tensor) -> None:
    assert callable(bound)
    views = views.clone().requires_grad_()
    loss = torch.stack(bound(*views, KAPPA)).sum()
    loss.backward()
    assert loss.isfinite()
    assert views.grad is not None
    assert views.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "bound"), [("continuous", continuous), ("discrete", discrete)])
def test_a_step_raises_the_bound_of_two_views(kind: str, bound: object) -> None:
    assert callable(bound)
    objective = EntropyReconstruction(kind, hidden=8, dim=4)
    model = build_bundle(lambda: small_resnet(width=2), objective, seed=0).eval()
    views = tuple(torch.rand(2, 3, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    step = objective.step(model, batch_of(*views))
    expected = bound(*(model["projector"](model["backbone"](view)) for view in views), KAPPA)
    torch.testing.assert_close(step.loss, expected.reconstruction - expected.entropy)
    assert step.metrics["entropy"] == pytest.approx(expected.entropy.item(), rel=1e-5)
    assert "embedding-rank" in step.metrics
    assert set(model) == {"backbone", "projector"}


@pytest.mark.parametrize("bound", [continuous, discrete])
def test_examples_of_a_batch_are_coupled(bound: object) -> None:
    assert callable(bound)
    assert EntropyReconstruction.contract.coupling == "batch"
    views = noise(2, 4, 3)
    halves = [value(bound(*half, KAPPA)) for half in views.split(2, dim=1)]
    assert value(bound(*views, KAPPA)) != pytest.approx(sum(halves) / 2, rel=1e-3)


@pytest.mark.parametrize("name", ["kind", "concentration", "hidden", "dim"])
def test_arguments_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        EntropyReconstruction(**{name: 0})
