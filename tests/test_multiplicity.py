"""Several draws of an example's views are one unit: their mean gradient is clipped once."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from test_local_privacy import AsIs, Dots, encoder
from test_private_gradients import SIZE, assert_equal, case
from test_sensitivity import flat
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.objectives.objective import Batch, Objective, Population
from fedssl.objectives.rotnet import RotNet
from fedssl.privacy.accounting import Release
from fedssl.privacy.example import Example
from fedssl.privacy.gradients import EngineName, engine
from fedssl.privacy.mechanism import Terms
from fedssl.privacy.noise import NoiseKey
from fedssl.training.loop import Examples, Schedule, Stream
from fedssl.training.private_loop import PrivateSteps, fit_privately

CASES = [
    (each, *pair)
    for each in ("ghost", "functional", "hooks")
    for pair in (("supervised", "cnn"), ("rotnet", "cnn"), ("vcop", "3d"), ("byol", "resnet"))
]


def joined(*draws: Batch) -> Batch:
    """One batch with the draws one after the other."""
    views = tuple(torch.cat(views) for views in zip(*(draw.views for draw in draws), strict=True))
    names = [field.name for field in fields(Batch) if field.name != "views"]
    return Batch(views, **{name: torch.cat([getattr(draw, name) for draw in draws]) for name in names})


def other(batch: Batch) -> Batch:
    """Other views of the same examples."""
    return replace(batch, views=tuple(view.square() for view in batch.views))


def by_the_definition(
    model: nn.ModuleDict, objective: Objective, draws: list[Batch], clip: float
) -> tuple[dict[str, Tensor], Tensor]:
    parameters = dict(model.named_parameters())
    trained = {name: value for name, value in parameters.items() if value.requires_grad}
    sums, norms = {name: torch.zeros_like(value) for name, value in trained.items()}, []
    for place in range(SIZE):
        alone = [draw.where(torch.arange(SIZE) == place) for draw in draws]
        loss = torch.stack([objective.step(model, draw).loss for draw in alone]).mean()
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        for name, gradient in zip(trained, gradients, strict=True):
            sums[name] += gradient * min(1.0, clip / norms[-1].item())
    return sums, torch.stack(norms)


@pytest.mark.parametrize(("name", "of", "network"), CASES)
def test_an_example_gives_the_clipped_gradient_of_its_mean_loss(name: EngineName, of: str, network: str) -> None:
    model, objective, batch = case(of, network)
    draws = [batch, other(batch), other(other(batch))]
    clip = by_the_definition(model, objective, draws, 1.0)[1].median().item()
    found = engine(name)(model, objective, joined(*draws), clip, 3)
    assert_equal(found, by_the_definition(model, objective, draws, clip))
    assert found.loss == pytest.approx(objective.step(model, joined(*draws)).loss.item(), rel=1e-9)


@pytest.mark.parametrize(("name", "of", "network"), CASES)
def test_the_same_draw_twice_is_one_draw(name: EngineName, of: str, network: str) -> None:
    model, objective, batch = case(of, network)
    once = engine(name)(model, objective, batch, 0.1)
    assert_equal(engine(name)(model, objective, joined(batch, batch), 0.1, 2), (dict(once.sums), once.norms))


@pytest.mark.parametrize("name", ["ghost", "functional", "hooks"])
def test_the_sum_moves_by_at_most_the_clip_when_all_draws_of_an_example_leave(name: EngineName) -> None:
    model, objective, batch = case("rotnet", "cnn")
    draws, clip, places = (batch, other(batch)), 1e-3, torch.arange(SIZE)
    whole = flat(engine(name)(model, objective, joined(*draws), clip, 2).sums)
    for place in places:
        rest = joined(*(draw.where(places != place) for draw in draws))
        moved = (whole - flat(engine(name)(model, objective, rest, clip, 2).sums)).norm().item()
        assert moved == pytest.approx(clip, rel=1e-6)  # every gradient is longer
        alone = joined(*(draw.where(places == place) for draw in draws))
        assert flat(engine(name)(model, objective, alone, clip, 2).sums).norm() <= clip * (1 + 1e-9)
    # row by row an example would be worth more
    apart = flat(engine(name)(model, objective, joined(*draws), clip).sums)
    assert (apart - flat(engine(name)(model, objective, rest, clip).sums)).norm() > 1.5 * clip


def test_weights_multiply_what_is_clipped() -> None:
    model, objective, batch = case("supervised", "cnn")
    weights = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    alone = [
        flat(engine("functional")(model, objective, batch.where(torch.arange(SIZE) == place), 0.1).sums)
        for place in range(SIZE)
    ]
    for name in ("ghost", "functional", "hooks"):
        found = flat(engine(name)(model, objective, batch, 0.1, weights=weights).sums)
        assert found == pytest.approx(weights @ torch.stack(alone), rel=1e-9, abs=1e-12)


def test_rows_that_are_no_whole_number_of_draws_are_refused() -> None:
    model, objective, batch = case("supervised", "cnn")
    with pytest.raises(ValueError, match="draws must divide the rows of the batch, 4, got 3"):
        engine("ghost")(model, objective, batch, 1.0, 3)
    with pytest.raises(ValueError, match="multiplicity must be at least 1, got 0"):
        Example(noise_multiplier=1.0, multiplicity=0)


class Brighter(AsIs):
    """Each view by another factor."""

    num_uniforms = 1

    def __call__(self, clips: Tensor, uniforms: np.ndarray, role: str, ordinal: int) -> Tensor:
        return clips / 255 * torch.from_numpy(uniforms).float().view(-1, 1, 1, 1, 1)


def trained(multiplicity: int, augmentation: AsIs, batch_size: int = 64) -> Tensor:
    """The weights after an epoch without noise, every example in every step."""
    model = build_bundle(encoder, RotNet(), 0, Population(6, 1))
    fit_privately(
        model, RotNet(), Examples(Dots(6), np.arange(6), augmentation),
        lambda parameters: torch.optim.SGD(parameters, lr=1.0), Schedule(1, batch_size, 1.0, 0.0), Stream(0, 0, 1),
        PrivateSteps(
            Example(noise_multiplier=0.0, sampling_rate=1.0, multiplicity=multiplicity),
            Terms(0.0, 1e-5, Release(0.0, 1.0, 1.0, 1)), NoiseKey.from_seed(0),
        ),
    )  # fmt: skip
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def test_a_step_takes_the_mean_of_other_draws_however_many_rows_are_computed_at_once() -> None:
    assert trained(3, AsIs()) == pytest.approx(trained(1, AsIs()), abs=1e-6)
    several = trained(3, Brighter())
    assert (several - trained(1, Brighter())).abs().max() > 1e-4
    for batch_size in (1, 4):
        assert trained(3, Brighter(), batch_size) == pytest.approx(several, abs=1e-6)
