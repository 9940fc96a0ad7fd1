from collections.abc import Callable

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.encoder import Encoder
from fedssl.models.image import small_resnet
from fedssl.models.small3d import small3d
from fedssl.models.vit import take, vit_tiny
from fedssl.objectives.mae import Mae, hidden_error, patchify, standardised
from fedssl.objectives.objective import Batch, Population

Make = Callable[[], Encoder]
ENCODERS: list[Make] = [
    lambda: vit_tiny(image_size=8, patch_size=4, depth=1),
    lambda: small_resnet(width=4, norm="group"),
]
BOTH = pytest.mark.parametrize("make", ENCODERS, ids=["vit", "resnet"])


def mae() -> Mae:
    return Mae(image_size=8, patch_size=4, mask_ratio=0.5, width=12, depth=1)


def batch(number: int = 3, frames: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(number, 3, frames, 8, 8, dtype=torch.float64, generator=generator)
    return batch_of(clips, uniforms=torch.rand(number, 4, dtype=torch.float64, generator=generator))


def model_of(make: Make, objective: Mae | None = None) -> nn.ModuleDict:
    return build_bundle(make, objective or mae(), seed=0).double()


@pytest.mark.parametrize(
    ("size", "patch", "ratio", "hidden"), [(32, 4, 0.75, 48), (28, 4, 0.75, 37), (8, 2, 0.5, 8), (224, 16, 0.9, 177)]
)
def test_as_many_patches_are_hidden_as_the_ratio_says(size: int, patch: int, ratio: float, hidden: int) -> None:
    objective = Mae(size, patch, mask_ratio=ratio)
    total = (size // patch) ** 2
    assert objective.num_uniforms == total
    assert total - objective.num_kept == total - int(total * (1 - ratio)) == hidden


def test_unshuffled_shuffled_patches_are_the_patches() -> None:
    tokens, order = torch.rand(2, 9, 5), torch.rand(2, 9).argsort(dim=1)
    assert torch.equal(take(take(tokens, order), order.argsort(dim=1)), tokens)


def test_patches_put_back_at_their_places_are_the_clip() -> None:
    clips = torch.rand(2, 3, 2, 6, 4)
    patches = patchify(clips, 2)
    assert patches.shape == (2, 2, 6, 12)
    back = torch.zeros_like(clips)
    for number in range(6):
        top, left = 2 * (number // 2), 2 * (number % 2)
        square = patches[:, :, number].view(2, 2, 2, 2, 3).permute(0, 4, 1, 2, 3)
        back[..., top : top + 2, left : left + 2] = square
    assert torch.equal(back, clips)


def test_a_perfect_prediction_costs_nothing() -> None:
    target = standardised(torch.rand(2, 1, 4, 12, dtype=torch.float64))
    assert hidden_error(target, target, torch.ones(2, 4, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_predicting_zero_costs_what_the_unbiased_variance_leaves(spread: float) -> None:
    patches = spread * torch.rand(1, 1, 1, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    variance = patches.var().item()
    loss = hidden_error(torch.zeros_like(patches), standardised(patches), torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(47 / 48 * variance / (variance + 1e-6), abs=1e-9)


def test_errors_of_patches_that_are_seen_cost_nothing() -> None:
    target, hidden = torch.rand(2, 1, 4, 12, dtype=torch.float64), torch.tensor([[True, False, True, False]] * 2)
    wrong = target + 100 * ~hidden[:, None, :, None]
    assert hidden_error(wrong, target, hidden).item() == 0
    wrong[0, 0, 2] += 3
    assert hidden_error(wrong, target, hidden).item() == pytest.approx(9 / 4, abs=1e-9)


def test_the_loss_is_that_of_a_slow_loop_and_has_its_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    patches, predicted = torch.rand(2, 2, 2, 4, 6, dtype=torch.float64, generator=generator)
    hidden, errors = torch.tensor([[True, False, False, True], [False, True, True, False]]), []
    for i in range(2):
        for frame in range(2):
            for number in range(4):
                values = patches[i, frame, number].tolist()
                mean = sum(values) / 6
                deviation = (sum((value - mean) ** 2 for value in values) / 5 + 1e-6) ** 0.5
                for guess, value in zip(predicted[i, frame, number].tolist(), values, strict=True):
                    if hidden[i, number]:
                        errors.append((guess - (value - mean) / deviation) ** 2)
    loss = hidden_error(predicted, standardised(patches), hidden)
    assert loss.item() == pytest.approx(sum(errors) / len(errors), abs=1e-9)
    check = torch.autograd.gradcheck
    assert check(lambda rows: hidden_error(rows, standardised(patches), hidden), predicted.requires_grad_())


@BOTH
def test_what_is_hidden_reaches_the_loss_as_a_target_alone(make: Make) -> None:
    objective, what = mae(), batch(1)
    model, order = model_of(make), what.uniforms.argsort(dim=1)[0]
    seen: list[Tensor] = []
    model["head"].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    for place in (order[0], order[-1]):  # the first is seen, the last hidden
        clips = what.views[0].clone()
        top, left = 4 * (int(place) // 2), 4 * (int(place) % 2)
        clips[..., top : top + 4, left : left + 4] = 0.5
        objective.step(model, batch_of(clips, uniforms=what.uniforms))
    objective.step(model, what)
    assert not torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[2])


def test_the_decoder_puts_each_patch_at_its_place() -> None:
    model = model_of(ENCODERS[0])
    head = model["head"].eval()
    tokens, order = torch.rand(1, 3, 192, dtype=torch.float64), torch.tensor([[3, 1, 0, 2]])
    placed: list[Tensor] = []
    head.blocks.register_forward_pre_hook(lambda _module, inputs: placed.append(inputs[0]))
    assert head(tokens, order).shape == (1, 4, 48)
    embedded, mask = head.embed(tokens)[0], head.mask_token[0, 0]
    expected = torch.stack((embedded[0], mask, embedded[2], mask, embedded[1]))
    torch.testing.assert_close(placed[0][0], expected)


@BOTH
def test_the_mask_of_an_example_and_its_gradient_do_not_depend_on_the_batch(make: Make) -> None:
    objective, what = mae(), batch(3)
    model = model_of(make)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    together = torch.autograd.grad(objective.step(model, what).loss, parameters)
    singles = [batch_of(what.views[0][i : i + 1], uniforms=what.uniforms[i : i + 1]) for i in range(3)]
    alone = [torch.autograd.grad(objective.step(model, single).loss, parameters) for single in singles]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0), rtol=1e-5, atol=1e-9)


@BOTH
def test_a_clip_costs_the_mean_of_its_frames_hidden_alike(make: Make) -> None:
    objective, what = mae(), batch(2, frames=2)
    model = model_of(make)
    losses = [
        objective.step(model, batch_of(frame, uniforms=what.uniforms)).loss.item()
        for frame in what.views[0].split(1, dim=2)
    ]
    assert objective.step(model, what).loss.item() == pytest.approx(sum(losses) / 2, abs=1e-9)


@BOTH
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_one_example_without_contrast_has_finite_gradients(make: Make, value: float) -> None:
    model = model_of(make)
    flat = batch_of(torch.full((1, 3, 1, 8, 8), value, dtype=torch.float64), uniforms=batch(1).uniforms)
    mae().step(model, flat).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("make", [ENCODERS[1], lambda: small_resnet(width=4)], ids=["group", "batch"])
def test_trying_a_convolutional_encoder_changes_nothing_of_it(make: Make) -> None:
    encoder = make()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    mae().build(encoder, Population(0))
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@BOTH
def test_a_few_steps_learn_a_batch_by_heart(make: Make) -> None:
    objective, what = mae(), batch(2)
    model = model_of(make)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective.step(model, what).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", 0),
        ("patch_size", 5),
        ("channels", 0),
        ("depth", 0),
        ("num_heads", 0),
        ("width", 10),
        ("mask_ratio", 0.0),
        ("mask_ratio", 1.0),
        ("mask_ratio", 0.99),
    ],
)
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{'image_size' if value == 5 else name} must "):
        Mae(**{name: value})


def test_another_size_than_the_encoders_or_the_views_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_size must be the encoder's 4, got 2"):
        model_of(ENCODERS[0], Mae(image_size=8, patch_size=2))
    with pytest.raises(ValueError, match="image_size must be the encoder's 8, got 16"):
        model_of(ENCODERS[0], Mae(image_size=16, patch_size=4))
    with pytest.raises(ValueError, match="image_size must be the size of the views, 12x12, got 8"):
        mae().step(model_of(ENCODERS[1]), batch_of(torch.zeros(1, 3, 1, 12, 12)))


def test_an_encoder_that_has_fewer_frames_than_a_clip_is_refused_and_takes_images() -> None:
    model = model_of(lambda: small3d(3, width=4))
    assert torch.isfinite(mae().step(model, batch()).loss)
    with pytest.raises(ValueError, match=r"model must keep the frames of a clip to predict pixels, got 2 of 8"):
        mae().step(model, batch(frames=8))


def test_hidden_patches_are_told_apart_by_their_places() -> None:
    model = model_of(ENCODERS[0])
    tokens = torch.zeros(1, 3, model["backbone"].feature_dim, dtype=torch.float64)
    predicted = model["head"](tokens, torch.arange(4)[None])
    assert not predicted[0, 2].allclose(predicted[0, 3])
