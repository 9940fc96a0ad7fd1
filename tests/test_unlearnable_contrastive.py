from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from batches import batch_of
from tiny_victim import apply_to_all, owned
from torch import Tensor, nn

from fedssl.objectives.byol import Byol
from fedssl.objectives.simclr import SimClr
from fedssl.privacy.unlearnable.contrastive import _VIEW, ContrastivePoisoning, contrastive_loss, view
from fedssl.privacy.unlearnable.groups import rows_of
from fedssl.privacy.unlearnable.noise import Noise
from fedssl.seeding import uniforms
from fedssl.training.image_augment import render

SMALL = ContrastivePoisoning(
    per="cluster",
    num_clusters=4,
    rounds=2,
    model_steps=3,
    noise_steps=3,
    batch_size=40,
    learning_rate=0.1,
    width=4,
    stem_stride=2,
)


def images(number: int = 6) -> Tensor:
    return torch.rand(number, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def numbers(number: int, ordinal: int = 0) -> np.ndarray:
    return uniforms(0, "numbers", ordinal, rows=np.arange(number), columns=_VIEW.num_uniforms)


def model_of(framework: str) -> nn.ModuleDict:
    """Return a source model whose teacher is not its copy."""
    protector = replace(SMALL, framework=framework)
    model, other = protector.source_model(3, 0), protector.source_model(3, 1)
    if framework == "byol":
        model["teacher"] = other["teacher"]
    return model.double().eval()


def loss_of(model: nn.ModuleDict, shown: Tensor) -> Tensor:
    return contrastive_loss(model, view(shown, numbers(len(shown))), view(shown, numbers(len(shown), 1)))


def test_a_view_is_what_augmentation_shows() -> None:
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = render(pixels.unsqueeze(2), _VIEW.draw(numbers(6), 8, 8, 8), 8, _VIEW)
    torch.testing.assert_close(view(pixels / 255, numbers(6)), wanted)


def test_a_view_of_images_that_are_not_square_has_their_size() -> None:
    assert view(images()[:, :, :5], numbers(6)).shape == (6, 3, 1, 5, 8)


@pytest.mark.parametrize(("framework", "objective"), [("simclr", SimClr(0.5, 128, 64)), ("byol", Byol(128, 64))])
def test_the_loss_is_that_of_the_framework(framework: str, objective: SimClr | Byol) -> None:
    model = model_of(framework)
    views = view(images(), numbers(6)), view(images(), numbers(6, 1))
    wanted = objective.step(model, batch_of(*views)).loss
    torch.testing.assert_close(contrastive_loss(model, *views), wanted)


@pytest.mark.parametrize("framework", ["simclr", "byol"])
def test_the_gradient_of_the_noise_is_the_slope_of_the_loss(framework: str) -> None:
    model, noise = model_of(framework), 0.01 * (images() - 0.5)
    noise.requires_grad_()
    shown = 0.25 + 0.5 * images()  # no pixel is near 0 or 1
    (slope,) = torch.autograd.grad(loss_of(model, shown + noise), noise)
    direction = torch.randn(noise.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ahead, behind = (loss_of(model, shown + noise + sign * 1e-6 * direction).item() for sign in (1, -1))
    assert (slope * direction).sum().item() == pytest.approx((ahead - behind) / 2e-6, rel=1e-3)


def test_the_gradient_of_byol_also_comes_through_the_teacher_but_not_into_it() -> None:
    model, shown = model_of("byol"), images().requires_grad_()
    views = view(shown, numbers(6)), view(shown, numbers(6, 1))
    both = torch.autograd.grad(contrastive_loss(model, *views), shown, retain_graph=True)[0]
    student = torch.autograd.grad(Byol(128, 64).step(model, batch_of(*views)).loss, shown)[0]
    assert (both - student).norm() > 0.1 * student.norm()
    contrastive_loss(model, *(each.detach() for each in views)).backward()
    assert all(parameter.grad is None for parameter in cast(nn.ModuleDict, model["teacher"]).parameters())
    assert all(parameter.grad is not None for parameter in model["predictor"].parameters())


@pytest.mark.parametrize("framework", ["simclr", "byol"])
def test_no_pixel_changes_by_more_than_the_budget_and_the_same_seed_gives_the_same_noise(framework: str) -> None:
    some, protector = owned(80), replace(SMALL, framework=framework)
    noise = protector.fit(some)
    changed = apply_to_all(noise, some.images)
    assert np.abs(changed.astype(int) - some.images).max() <= 8
    assert (protector.fit(some).patterns == noise.patterns).all()
    assert (protector.fit(replace(some, seed=1)).patterns != noise.patterns).any()


@pytest.mark.parametrize(("per", "patterns"), [("class", 10), ("cluster", 4), ("sample", 60)])
def test_whoever_shares_a_pattern_has_the_same_row(per: str, patterns: int) -> None:
    some, protector = owned(60), replace(SMALL, per=per, rounds=1)
    noise = protector.fit(some)
    assert len(noise.patterns) == patterns
    assert (noise.rows == rows_of(some, protector.per, 4)[0]).all()


def test_rounds_make_the_loss_smaller() -> None:
    losses: list[float] = []
    some = owned(256, say=lambda what, done, total: losses.append(float(what.split()[-1])))
    replace(SMALL, budget=32, rounds=8, model_steps=8, noise_steps=8, batch_size=64).fit(some)
    assert len(losses) == 8
    assert np.mean(losses[-2:]) < np.mean(losses[:2]) - 0.2


def test_patterns_of_images_begin_with_those_of_their_clusters() -> None:
    some = owned(60)
    once = replace(
        SMALL, per="sample", rounds=1, model_steps=1, noise_steps=1, batch_size=60, inner_steps=1, step=0.125
    )

    def spread(noise: Noise) -> int:
        """Return by how much patterns of one cluster differ."""
        rows = rows_of(some, "cluster", 4)[0]
        return max(int(np.ptp(noise.patterns[rows == row], axis=0).max()) for row in range(4))

    assert spread(replace(once, start_rounds=2).fit(some)) <= 2  # one step of one level to either side
    assert spread(once.fit(some)) > 10


@pytest.mark.parametrize(
    ("per", "start", "start_rounds", "needed"),
    [
        ("class", "cluster", 0, True),
        ("cluster", "class", 1, False),
        ("sample", "cluster", 1, False),
        ("sample", "class", 0, False),
        ("sample", "class", 1, True),
    ],
)
def test_labels_are_needed_where_classes_share_a_pattern(per: str, start: str, start_rounds: int, needed: bool) -> None:
    protector = replace(SMALL, per=per, start=start, start_rounds=start_rounds)
    assert protector.needs_labels == needed
    unknown = replace(owned(20), labels=np.full(20, -1))
    if needed:
        with pytest.raises(ValueError, match="labels must be known of all 20 images, got 0"):
            protector.fit(unknown)
    else:
        assert len(protector.fit(unknown).rows) == 20


def test_a_single_image_is_refused() -> None:
    with pytest.raises(ValueError, match="images must be at least 2, got 1"):
        replace(SMALL, num_clusters=1).fit(owned(1))
