from collections.abc import Callable

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.encoder import Encoder
from fedssl.models.image import small_resnet
from fedssl.models.small3d import small3d
from fedssl.models.vit import vit_tiny
from fedssl.objectives.gmml import Gmml, corrupted_error, covered
from fedssl.objectives.objective import Batch

Make = Callable[[], Encoder]
ENCODERS: list[Make] = [
    lambda: vit_tiny(image_size=8, patch_size=2, depth=1),
    lambda: small_resnet(width=4, norm="group"),
]
BOTH = pytest.mark.parametrize("make", ENCODERS, ids=["vit", "resnet"])


def gmml(replaced: float = 0.0) -> Gmml:
    return Gmml(image_size=8, patch_size=2, replaced=replaced, hidden=8)


def batch(number: int = 3, frames: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(number, 3, frames, 8, 8, dtype=torch.float64, generator=generator)
    return batch_of(clips, uniforms=torch.rand(number, gmml().num_uniforms, dtype=torch.float64, generator=generator))


def model_of(make: Make) -> nn.ModuleDict:
    return build_bundle(make, gmml(), seed=0).double()


@pytest.mark.parametrize("side", [4, 7, 8, 14])
def test_blocks_cover_the_wanted_share_and_at_most_one_block_more(side: int) -> None:
    generator = torch.Generator().manual_seed(side)
    wanted = 0.5 + 0.25 * torch.rand(300, dtype=torch.float64, generator=generator)
    uniforms = torch.rand(300, 96, 4, dtype=torch.float64, generator=generator)
    shares = covered(uniforms, wanted, side, largest=0.3).double().mean(dim=(1, 2))
    largest = max(1, int(0.3 * side)) ** 2 / side**2
    assert (shares >= wanted).all()
    assert (shares < wanted + largest).all()


def test_blocks_are_taken_in_their_order_until_they_are_enough() -> None:
    corners = [(0.0, 0.0), (0.99, 0.99), (0.5, 0.5)]  # of 2x2 blocks in 7x7 cells
    uniforms = torch.tensor([[[row, column, 0.99, 0.99] for row, column in corners]], dtype=torch.float64)
    cells = covered(uniforms, torch.tensor([5 / 49]), 7, largest=0.3)[0]
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[:2, :2] = expected[5:, 5:] = True
    assert torch.equal(cells, expected)


def test_every_cell_is_covered_now_and_then_and_blocks_stay_inside() -> None:
    uniforms = torch.rand(2000, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cells = covered(uniforms, torch.ones(2000), 7, largest=0.3)
    assert cells.any(dim=0).all()
    assert set(cells.sum(dim=(1, 2)).tolist()) == {1, 2, 4}  # 1x1, 1x2, 2x1 and 2x2: none is cut off


def test_corruption_is_aligned_noise_and_the_rest_is_the_image() -> None:
    what = batch(40)
    corrupted, pixels = gmml().corrupt(what.views[0], what.uniforms)
    kept = ~pixels[:, None, None].expand_as(corrupted)
    assert torch.equal(corrupted[kept], what.views[0][kept])
    cells = pixels.unflatten(2, (4, 2)).unflatten(1, (4, 2))
    assert torch.equal(cells.any(dim=4).any(dim=2), cells.all(dim=4).all(dim=2))
    noise = (corrupted[~kept] - 0.5) / 0.25
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_all_frames_are_corrupted_alike() -> None:
    what = batch(2, frames=2)
    corrupted, pixels = gmml().corrupt(what.views[0], what.uniforms)
    inside = pixels[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(corrupted[:, :, 0][inside], corrupted[:, :, 1][inside])


def test_replaced_blocks_show_the_next_example_in_about_half_of_them() -> None:
    objective, what = gmml(replaced=0.3), batch(60)
    corrupted, pixels = objective.corrupt(what.views[0], what.uniforms)
    following = what.views[0].roll(-1, dims=0)
    swapped = what.uniforms[:, 0] < 0.5
    inside = pixels[:, None, None] & swapped[:, None, None, None, None]
    assert torch.equal(corrupted[inside.expand_as(corrupted)], following[inside.expand_as(corrupted)])
    assert 20 < int(swapped.sum()) < 40
    assert set(pixels[swapped].double().mean(dim=(1, 2)).tolist()) == {5 / 16}  # the first multiple of a cell past 0.3
    noisy, noisy_pixels = gmml().corrupt(what.views[0], what.uniforms)
    assert torch.equal(noisy[~swapped], corrupted[~swapped])
    assert torch.equal(noisy_pixels[~swapped], pixels[~swapped])


def test_only_noise_leaves_examples_apart() -> None:
    assert (gmml().contract.coupling, gmml().min_batch) == ("per_example", 1)
    assert (gmml(0.3).contract.coupling, gmml(0.3).min_batch) == ("batch", 2)


def test_a_perfect_repair_costs_nothing_and_what_was_whole_does_not_count() -> None:
    clips, corrupted = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64), torch.zeros(2, 4, 4, dtype=torch.bool)
    corrupted[:, :2] = True
    assert corrupted_error(clips, clips, corrupted).item() == 0
    wrong = clips.clone()
    wrong[..., 2:, :] += 5
    assert corrupted_error(wrong, clips, corrupted).item() == 0
    wrong[0, :, :, 0, 0] -= 2
    assert corrupted_error(wrong, clips, corrupted).item() == pytest.approx(2 / 8 / 2, abs=1e-9)


def test_the_loss_is_that_of_a_slow_loop_and_has_its_gradient() -> None:
    generator = torch.Generator().manual_seed(3)
    predicted, clips = torch.rand(2, 2, 3, 2, 2, 2, dtype=torch.float64, generator=generator)
    corrupted = torch.tensor([[[True, False], [True, True]], [[False, False], [False, True]]])
    means = []
    for i in range(2):
        errors = [
            abs(predicted[i, channel, frame, row, column] - clips[i, channel, frame, row, column]).item()
            for channel in range(3)
            for frame in range(2)
            for row in range(2)
            for column in range(2)
            if corrupted[i, row, column]
        ]
        means.append(sum(errors) / len(errors))
    assert corrupted_error(predicted, clips, corrupted).item() == pytest.approx(sum(means) / 2, abs=1e-9)
    check = torch.autograd.gradcheck
    assert check(lambda pixels: corrupted_error(pixels, clips, corrupted), predicted.requires_grad_())


@BOTH
def test_the_gradient_of_a_batch_is_the_mean_of_those_of_its_examples(make: Make) -> None:
    objective, what = gmml(), batch(3)
    model = model_of(make)
    parameters = list(model.parameters())
    together = torch.autograd.grad(objective.step(model, what).loss, parameters)
    singles = [batch_of(what.views[0][i : i + 1], uniforms=what.uniforms[i : i + 1]) for i in range(3)]
    alone = [torch.autograd.grad(objective.step(model, single).loss, parameters) for single in singles]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0), rtol=1e-5, atol=1e-9)


def test_replacement_couples_examples() -> None:
    objective, what = gmml(replaced=0.3), batch(4)
    model = model_of(ENCODERS[1])
    changed = what.views[0].clone()
    changed[1:] = 0
    uniforms = what.uniforms.clone()
    uniforms[:, 0] = 0.1
    first = [objective.corrupt(clips, uniforms)[0][0] for clips in (what.views[0], changed)]
    assert not torch.equal(*first)
    assert torch.isfinite(objective.step(model, what).loss)


@pytest.mark.parametrize("size", [8, 12, 14])
def test_predictions_have_the_size_of_the_views_whatever_the_stride(size: int) -> None:
    objective = Gmml(image_size=size, patch_size=2, channels=1, hidden=4)
    model = build_bundle(lambda: small_resnet(1, width=4), objective, seed=0).eval()
    clips = torch.rand(2, 1, 2, size, size)
    assert model["head"](model["backbone"].feature_map(clips)).shape == clips.shape


@BOTH
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_one_example_without_contrast_has_finite_gradients(make: Make, value: float) -> None:
    model = model_of(make)
    clips, uniforms = torch.full((1, 3, 1, 8, 8), value, dtype=torch.float64), batch(1).uniforms
    uniforms[:, ::7] = 0  # the least number that can be drawn
    gmml().step(model, batch_of(clips, uniforms=uniforms)).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_step_repairs_what_it_corrupted() -> None:
    objective, what = gmml(), batch(2)
    model = model_of(ENCODERS[1])
    corrupted, pixels = objective.corrupt(what.views[0], what.uniforms)
    predicted: Tensor = model["head"](model["backbone"].feature_map(corrupted))
    step = objective.step(model, what)
    torch.testing.assert_close(step.loss, corrupted_error(predicted, what.views[0], pixels))
    assert step.metrics == {"corrupted": pytest.approx(pixels.double().mean().item())}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", 0),
        ("channels", 0),
        ("hidden", 0),
        ("image_size", 30),
        ("image_size", 4),
        ("least", 0.0),
        ("least", 0.8),
        ("most", 1.5),
        ("largest_block", -0.1),
        ("replaced", 1.1),
    ],
)
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        Gmml(**{name: value})


def test_views_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size must be the size of the views, 12x12, got 8"):
        gmml().step(model_of(ENCODERS[1]), batch_of(torch.zeros(1, 3, 1, 12, 12)))


def test_an_encoder_that_has_fewer_frames_than_a_clip_is_refused_and_takes_images() -> None:
    model = model_of(lambda: small3d(3, width=4))
    assert torch.isfinite(gmml().step(model, batch()).loss)
    with pytest.raises(ValueError, match=r"model must keep the frames of a clip to predict pixels, got 2 of 8"):
        gmml().step(model, batch(frames=8))
