import pytest
import torch
from batches import batch_of
from torch import Tensor

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.w_mse import WMse, w_mse, whiten


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ALL = (torch.arange(8),)


def test_whitened_rows_have_mean_zero_and_covariance_one() -> None:
    rows, fallbacks = whiten(3 * noise(2, 8, 4) + 1, epsilon=0)
    assert fallbacks == 0
    for view in rows:
        torch.testing.assert_close(view.mean(dim=0), torch.zeros(4).double(), atol=1e-9, rtol=0)
        torch.testing.assert_close(view.T.cov(), torch.eye(4).double(), atol=1e-9, rtol=0)
        assert view.square().sum().item() == pytest.approx(7 * 4, abs=1e-9)


def test_lower_triangular_maps_and_shifts_do_not_matter() -> None:
    views = noise(2, 8, 4)
    maps = noise(2, 4, 4, seed=1).tril(-1) + torch.diag_embed(noise(2, 4, seed=2).abs() + 0.5)
    moved = views @ maps.mT + noise(2, 1, 4, seed=3)
    assert w_mse(moved, ALL, 0)[0].item() == pytest.approx(w_mse(views, ALL, 0)[0].item(), abs=1e-9)


def test_equal_views_cost_nothing() -> None:
    assert w_mse(noise(1, 8, 4).expand(3, 8, 4), ALL, 0)[0].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_is_that_of_a_slow_loop_and_has_its_gradient(seed: int) -> None:
    views, slices = noise(3, 9, 2, seed=seed), (torch.tensor([0, 3, 5, 8]), torch.tensor([7, 1, 2, 6, 4]))
    losses = []
    for places in slices:
        white = []
        for view in views:
            rows = view[places] - view[places].mean(dim=0)
            a, b, c = (
                sum(float(row[i] * row[j]) for row in rows) / (len(rows) - 1) for i, j in ((0, 0), (1, 0), (1, 1))
            )
            # forward substitution with the factor [[p, 0], [q, r]]
            p = a**0.5
            q = b / p
            r = (c - q * q) ** 0.5
            white.append([(float(x) / p, (float(y) - q * float(x) / p) / r) for x, y in rows])
        for first, second in ((0, 1), (0, 2), (1, 2)):
            for (x, y), (u, v) in zip(white[first], white[second], strict=True):
                losses.append(2 - 2 * (x * u + y * v) / ((x * x + y * y) * (u * u + v * v)) ** 0.5)
    assert w_mse(views, slices, 0)[0].item() == pytest.approx(sum(losses) / len(losses), abs=1e-9)
    assert torch.autograd.gradcheck(lambda rows: w_mse(rows, slices, 0)[0], views.requires_grad_())


@pytest.mark.parametrize("views", [noise(2, 5, 4), torch.zeros(2, 8, 4), torch.ones(2, 8, 4)])
def test_loss_and_gradient_are_finite_at_the_edges(views: Tensor) -> None:
    views = views.clone().requires_grad_()
    loss, _ = w_mse(views, (torch.arange(views.shape[1]),), 0)
    loss.backward()
    assert loss.isfinite()
    assert views.grad is not None
    assert views.grad.isfinite().all()


def test_a_singular_covariance_is_shrunk_alone_and_counted() -> None:
    good = noise(8, 4)
    bad = good * torch.tensor([1.0, 1.0, 0.0, 1.0])  # a dead dimension
    views = torch.stack((good, bad))
    whitened, fallbacks = whiten(views, epsilon=0)
    assert fallbacks == 1
    assert torch.equal(whitened[0], whiten(good[None], epsilon=0)[0][0])
    assert whitened[1].isfinite().all()
    assert whiten(views, epsilon=0.01)[1] == 0


def test_a_step_whitens_every_example_in_slices_of_enough() -> None:
    objective = WMse(num_views=3, hidden=8, dim=2, slice_size=4, norm="none")
    model = build_bundle(lambda: small_resnet(width=2), objective, seed=0).eval()
    views = tuple(torch.rand(3, 7, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    step = objective.step(model, batch_of(*views))
    embedded = torch.stack([model["projector"](model["backbone"](view)) for view in views])
    torch.testing.assert_close(step.loss, w_mse(embedded, (torch.arange(7),), 0)[0], atol=1e-4, rtol=1e-4)
    assert step.metrics["whitening-fallback"] == 0
    assert "embedding-rank" in step.metrics
    assert set(model) == {"backbone", "projector"}
    assert objective.views == ("full", "full", "full")


def test_double_precision_is_an_option() -> None:
    objective = WMse(hidden=8, dim=2, slice_size=4, float64=True)
    model = build_bundle(lambda: small_resnet(width=2), objective, seed=0)
    step = objective.step(model, batch_of(*torch.rand(2, 4, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))))
    assert step.loss.dtype == torch.float64
    step.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_slices_are_drawn_anew_in_every_step() -> None:
    objective = WMse(hidden=8, dim=2, slice_size=4)
    model = build_bundle(lambda: small_resnet(width=2), objective, seed=0).eval()
    batch = batch_of(*torch.rand(2, 8, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    losses = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            losses.append(objective.step(model, batch).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_examples_of_a_batch_are_coupled() -> None:
    assert WMse().contract.coupling == "batch"
    views = noise(2, 8, 2)
    halves = [w_mse(half, (torch.arange(4),), 0)[0].item() for half in views.split(4, dim=1)]
    assert w_mse(views, ALL, 0)[0].item() != pytest.approx(sum(halves) / 2, rel=1e-3)


def test_a_slice_must_have_more_examples_than_dimensions() -> None:
    with pytest.raises(ValueError, match="slice_size must be above dim, which is 64, got 64"):
        WMse(dim=64, slice_size=64)
    assert WMse(dim=64, slice_size=65).min_batch == 65


@pytest.mark.parametrize(("name", "value"), [("num_views", 1), ("hidden", 0), ("dim", 0), ("epsilon", 1.0)])
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        WMse(**{name: value})
