from math import log

import numpy as np
import pytest
import torch
from batches import batch_of
from scipy.stats import norm as normal
from torch import Tensor, nn

from fedssl.compose import load
from fedssl.config import build
from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.cvrl import Cvrl
from fedssl.objectives.dino import Dino
from fedssl.objectives.e2mc import E2mc, normal_map, sigmoid_map, spacing_entropy
from fedssl.objectives.objective import Batch, Objective, Population
from fedssl.objectives.swav import Swav
from fedssl.objectives.vicreg import Vicreg, covariance_penalty

SLACK = 2e-7  # of what is added to a spacing


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def even(number: int) -> Tensor:
    return torch.arange(1, number + 1, dtype=torch.float64)[:, None] / (number + 1)


def images(number: int = 16) -> Batch:
    return batch_of(*torch.rand(2, number, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


def bundle(objective: Objective) -> nn.ModuleDict:
    model = build_bundle(lambda: small_resnet(width=2), objective, seed=0, population=Population(64))
    objective.begin_round(model, first=True)
    return model


@pytest.mark.parametrize("number", [4, 16, 33])
def test_evenly_spaced_values_have_entropy_zero_and_uneven_ones_less(number: int) -> None:
    assert spacing_entropy(even(number)).item() == pytest.approx(0, abs=SLACK)
    assert spacing_entropy(even(number) ** 2).item() < -0.01


def test_half_the_range_costs_the_log_of_two() -> None:
    assert spacing_entropy(even(16) / 2).item() == pytest.approx(-log(2), abs=SLACK)


def test_the_order_of_examples_does_not_matter() -> None:
    values = noise(9, 3).sigmoid()
    assert spacing_entropy(values.flip(0)).item() == pytest.approx(spacing_entropy(values).item(), abs=1e-12)


def test_a_constant_dimension_has_the_log_of_what_is_added() -> None:
    assert spacing_entropy(torch.full((16, 3), 0.3).double()).item() == pytest.approx(log(1e-7), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_entropy_is_that_of_a_slow_loop_and_has_its_gradient(seed: int) -> None:
    values = noise(7, 3, seed=seed).sigmoid()
    entropies = []
    for column in values.T.tolist():
        ordered = sorted(column)
        entropies += [log((ordered[i + 3] - ordered[i]) * 8 / 3 + 1e-7) for i in range(4)]  # 3 is about the root of 7
    assert spacing_entropy(values).item() == pytest.approx(sum(entropies) / 12, abs=1e-9)
    assert torch.autograd.gradcheck(spacing_entropy, values.requires_grad_())


@pytest.mark.parametrize("uniform_map", [sigmoid_map, normal_map])
def test_the_maps_lead_into_the_unit_interval_and_have_a_gradient(uniform_map: object) -> None:
    assert callable(uniform_map)
    rows = noise(5, 3).requires_grad_()
    assert 0 < uniform_map(rows).min() < uniform_map(rows).max() < 1
    assert torch.autograd.gradcheck(uniform_map, rows)


def test_the_normal_map_makes_normal_embeddings_uniform() -> None:
    rows = noise(500, 64)
    np.testing.assert_allclose(normal_map(rows).numpy(), normal.cdf(rows.numpy()), atol=1e-9)
    deciles = normal_map(rows).flatten().quantile(torch.tensor([0.1, 0.5, 0.9]).double())
    assert deciles.tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.01)


@pytest.mark.parametrize("uniform_map", [sigmoid_map, normal_map])
@pytest.mark.parametrize("rows", [noise(16, 3), torch.zeros(16, 3), torch.ones(16, 3)])
def test_the_terms_and_their_gradient_are_finite_at_the_edges(uniform_map: object, rows: Tensor) -> None:
    assert callable(uniform_map)
    rows = rows.clone().requires_grad_()
    values = uniform_map(rows)
    loss = covariance_penalty(values) - spacing_entropy(values)
    loss.backward()
    assert loss.isfinite()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_a_step_adds_the_terms_of_both_views_to_the_hosts_loss() -> None:
    host = Vicreg(hidden=8, dim=4)
    objective = E2mc(host, entropy_weight=2, covariance_weight=3)
    model, batch = bundle(objective).eval(), images()
    step = objective.step(model, batch)
    views = [model["projector"](model["backbone"](view)).sigmoid() for view in batch.views]
    entropy = (spacing_entropy(views[0]) + spacing_entropy(views[1])) / 2
    covariance = covariance_penalty(views[0]) + covariance_penalty(views[1])
    expected = host.step(model, batch)
    torch.testing.assert_close(step.loss, expected.loss - 2 * entropy + 3 * covariance)
    assert step.metrics["host-loss"] == pytest.approx(expected.loss.item())
    assert step.metrics["e2mc-entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    assert step.metrics["covariance"] == pytest.approx(expected.metrics["covariance"])


def test_small_crops_are_left_out() -> None:
    objective = E2mc(Swav(hidden=8, dim=4, num_prototypes=6, num_local=2), mapping="normal")
    model, full = bundle(objective).eval(), images()
    step = objective.step(
        model, batch_of(*full.views, *torch.rand(2, 16, 3, 1, 4, 4, generator=torch.Generator().manual_seed(1)))
    )
    views = [normal_map(model["projector"](model["backbone"](view))) for view in full.views]
    entropy = (spacing_entropy(views[0]) + spacing_entropy(views[1])) / 2
    assert step.metrics["e2mc-entropy"] == pytest.approx(entropy.item(), rel=1e-4)


def test_without_weights_the_gradient_is_the_hosts_bit_for_bit() -> None:
    host = Vicreg(hidden=8, dim=4)
    gradients = []
    for objective in (host, E2mc(host, entropy_weight=0, covariance_weight=0)):
        model = bundle(objective)
        objective.step(model, images()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_the_network_runs_once_and_nothing_stays_hooked_when_the_host_fails() -> None:
    objective = E2mc(Vicreg(hidden=8, dim=4))
    model = bundle(objective)
    objective.step(model, images())
    assert int(model["backbone"].body[0][1].num_batches_tracked) == 1
    assert not model["projector"]._forward_hooks
    with pytest.raises(RuntimeError):
        objective.step(model, batch_of(*torch.zeros(2, 16, 5, 1, 8, 8)))
    assert not model["projector"]._forward_hooks


def test_the_hosts_views_frames_groups_hooks_and_secrets_pass_through() -> None:
    host = Swav(hidden=8, dim=4, num_prototypes=6, queue_size=16)
    objective = E2mc(host, mapping="normal")
    model = bundle(objective)
    assert set(model) == {"backbone", "projector", "prototypes", "queue", "progress"}
    assert objective.contract.coupling == "batch"
    assert objective.contract.private_groups == host.contract.private_groups
    assert (objective.views, objective.min_batch) == (host.views, 16)
    objective.step(model, images())
    objective.after_step(model, 0.3)
    assert float(model["progress"].done) == pytest.approx(0.3)
    assert len(model["queue"][0]) == 16
    video = Cvrl(clip_frames=4)
    clips = E2mc(video)
    assert (clips.min_frames, clips.num_uniforms) == (4, 3)
    uniforms = np.array([0.3, 0.6, 0.9])
    assert (clips.draw(20, uniforms).frames == video.draw(20, uniforms).frames).all()


def test_a_host_without_projector_is_refused() -> None:
    with pytest.raises(ValueError, match="host must be an objective with a projector, got Dino"):
        bundle(E2mc(Dino(hidden=8, dim=4, num_prototypes=6)))


def test_another_host_is_chosen_on_the_command_line() -> None:
    objective = build(load(["objective=e2mc", "objective@objective.host=swav", "objective.host.dim=8"]), "objective")
    assert isinstance(objective, E2mc)
    assert isinstance(objective.host, Swav)
    assert objective.host.dim == 8


@pytest.mark.parametrize("name", ["entropy_weight", "covariance_weight", "mapping"])
def test_arguments_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        E2mc(Vicreg(), **{name: -1})
