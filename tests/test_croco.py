from collections.abc import Callable

import numpy as np
import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.small3d import small3d
from fedssl.models.vit import vit_tiny
from fedssl.objectives.croco import Croco
from fedssl.objectives.mae import patchify, standardised
from fedssl.objectives.objective import Batch


def croco(normalised: bool = True) -> Croco:
    return Croco(1, 3, 8, 4, 2, mask_ratio=0.5, normalised=normalised, width=12, depth=1, num_heads=3)


def model_of(objective: Croco | None = None) -> nn.ModuleDict:
    return build_bundle(lambda: vit_tiny(2, 8, 4, depth=1), objective or croco(), seed=0).double()


def batch(number: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(number, 2, 2, 8, 8, dtype=torch.float64, generator=generator)
    return batch_of(clips, uniforms=torch.rand(number, 6, dtype=torch.float64, generator=generator))


class Says(nn.Module):
    """A decoder that predicts what it was told, whatever it sees."""

    def __init__(self, patches: Tensor) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, _tokens: Tensor, _order: Tensor, _reference: Tensor) -> Tensor:
        return self.patches


def loss_of(what: Batch, patches: Tensor, *, normalised: bool = True) -> float:
    """The loss of a prediction `[batch, 4, 32]`."""
    model = nn.ModuleDict({"backbone": model_of()["backbone"], "head": Says(patches)})
    return croco(normalised).step(model, what).loss.item()


def targets(what: Batch) -> Tensor:
    return patchify(what.views[0][:, :, 1:], 4)[:, 0]


def hidden(what: Batch) -> Tensor:
    """Which two of the four patches have the greatest numbers."""
    return what.uniforms[:, 2:].argsort(dim=1).argsort(dim=1) >= 2


def painted(what: Batch, frame: int, patch: int) -> Batch:
    """The batch with other pixels in one patch of one frame."""
    clips = what.views[0].clone()
    top, left = 4 * (patch // 2), 4 * (patch % 2)
    clips[:, :, frame, top : top + 4, left : left + 4] = torch.linspace(0, 1, 4, dtype=clips.dtype)
    return batch_of(clips, uniforms=what.uniforms)


@pytest.mark.parametrize(
    ("size", "patch", "ratio", "number"), [(224, 16, 0.9, 176), (32, 4, 0.9, 58), (16, 4, 0.9, 14), (8, 4, 0.6, 2)]
)
def test_as_many_patches_are_hidden_as_the_ratio_says_to_the_nearest(
    size: int, patch: int, ratio: float, number: int
) -> None:
    objective = Croco(image_size=size, patch_size=patch, mask_ratio=ratio)
    total = (size // patch) ** 2
    assert total - objective.num_kept == round(ratio * total) == number
    assert objective.num_uniforms == 2 + total


@pytest.mark.parametrize("normalised", [True, False])
def test_the_true_patches_cost_nothing(normalised: bool) -> None:
    what = batch()
    truth = standardised(targets(what)) if normalised else targets(what)
    assert loss_of(what, truth, normalised=normalised) == 0


def test_a_constant_costs_the_variance_of_the_hidden_patches() -> None:
    what, total = batch(), 0.0
    for patches, chosen in zip(targets(what), hidden(what), strict=True):
        assert chosen.sum() == 2
        total += sum(((patch - 0.5) ** 2).mean().item() for patch in patches[chosen])
    constant = torch.full((3, 4, 32), 0.5, dtype=torch.float64)
    assert loss_of(what, constant, normalised=False) == pytest.approx(total / 6, abs=1e-12)


def test_zero_costs_normalised_patches_of_32_pixels_31_of_32_whatever_their_contrast() -> None:
    what = batch()
    faint = batch_of(0.3 + 0.5 * what.views[0], uniforms=what.uniforms)
    for each in (what, faint):
        left = targets(each).var(dim=2)[hidden(each)]
        left = left / (left + 1e-6)  # what the 1e-6 beside variances leaves
        loss = loss_of(each, torch.zeros(3, 4, 32, dtype=torch.float64))
        assert loss == pytest.approx(31 / 32 * left.mean().item(), abs=1e-12)
        assert loss == pytest.approx(31 / 32, rel=1e-4)


@pytest.mark.parametrize("normalised", [True, False])
def test_only_hidden_patches_of_the_target_count(normalised: bool) -> None:
    what, guess = batch(1), torch.linspace(0, 1, 32, dtype=torch.float64).expand(1, 4, 32)
    before = loss_of(what, guess, normalised=normalised)
    for patch in range(4):
        assert loss_of(painted(what, 0, patch), guess, normalised=normalised) == before
        changed = loss_of(painted(what, 1, patch), guess, normalised=normalised) != before
        assert changed == hidden(what)[0, patch].item()


def test_the_decoder_sees_the_whole_reference_and_what_is_not_hidden_of_the_target() -> None:
    what, model = batch(1), model_of()
    outputs: list[Tensor] = []
    model["head"].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))

    def predicted(of: Batch) -> Tensor:
        croco().step(model, of)
        return outputs.pop()

    before = predicted(what)
    for patch in range(4):
        assert not torch.equal(predicted(painted(what, 0, patch)), before)
        assert torch.equal(predicted(painted(what, 1, patch)), before) == hidden(what)[0, patch].item()


def test_both_frames_are_seen_by_the_same_encoder_each_alone() -> None:
    what, model = batch(1), model_of()
    inputs: list[tuple[Tensor, ...]] = []
    model["head"].register_forward_pre_hook(lambda _module, given: inputs.append(given))
    croco().step(model, what)
    ((tokens, order, reference),) = inputs
    first, second = what.views[0].split(1, dim=2)
    encoder = model["backbone"]
    assert order[0, :2].tolist() == what.uniforms[0, 2:].argsort()[:2].tolist()
    torch.testing.assert_close(reference.mT.unflatten(2, (1, 2, 2)), encoder.feature_map(first))
    torch.testing.assert_close(tokens, encoder.encode(second, order[:, :2])[:, 1:])


def test_the_decoder_puts_each_patch_at_its_place() -> None:
    head = model_of()["head"]
    placed: list[Tensor] = []
    head.blocks[0].register_forward_pre_hook(lambda _module, inputs: placed.append(inputs[0]))
    generator = torch.Generator().manual_seed(0)
    tokens, reference = torch.rand(2, 1, 4, 192, dtype=torch.float64, generator=generator)
    order = torch.tensor([[2, 0, 1, 3]])
    assert head(tokens[:, :2], order, reference).shape == (1, 4, 32)
    embedded, mask = head.embed(tokens)[0], head.mask_token[0, 0]
    positions = placed[0][0] - torch.stack((embedded[1], mask, embedded[0], mask))
    assert torch.cdist(positions, positions).add(torch.eye(4)).min() > 0.1
    head(tokens[:, [1, 0]], order[:, [1, 0, 2, 3]], reference)
    torch.testing.assert_close(placed[1], placed[0])


def test_the_loss_of_a_batch_and_its_gradient_are_the_means_over_its_examples() -> None:
    objective, what, model = croco(), batch(3), model_of()
    parameters = [*model["backbone"].body.encoder.layers.parameters(), *model["head"].parameters()]
    steps = [objective.step(model, what.where(torch.arange(3) == place)).loss for place in range(3)]
    together = objective.step(model, what).loss
    torch.testing.assert_close(together, torch.stack(steps).mean())
    alone = [torch.autograd.grad(loss, parameters) for loss in steps]
    for whole, parts in zip(torch.autograd.grad(together, parameters), zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_frame_without_contrast_has_finite_gradients(normalised: bool) -> None:
    model = model_of()
    flat = batch_of(torch.full((1, 2, 2, 8, 8), 0.7, dtype=torch.float64), uniforms=batch(1).uniforms)
    croco(normalised).step(model, flat).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def trained(copies: Callable[[Tensor], Tensor], steps: int) -> float:
    """The last losses of training on noise that is fresh in each step; the reference is made of the target."""
    objective = Croco(1, 3, 4, 2, 1, mask_ratio=0.75, width=24, depth=1, num_heads=2)
    model = build_bundle(lambda: vit_tiny(1, 4, 2, depth=1), objective, seed=0)
    optimizer, generator, losses = torch.optim.Adam(model.parameters(), lr=1e-3), torch.Generator().manual_seed(0), []
    for _ in range(steps):
        target = torch.rand(64, 1, 1, 4, 4, generator=generator)
        uniforms = torch.rand(64, objective.num_uniforms, dtype=torch.float64, generator=generator)
        loss = objective.step(model, batch_of(torch.cat((copies(target), target), dim=2), uniforms=uniforms)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


def test_noise_can_be_completed_from_a_reference_that_shows_it_and_from_nothing_else() -> None:
    assert trained(lambda target: target, 120) < 0.1
    assert trained(lambda target: torch.full_like(target, 0.5), 40) > 0.7  # 3/4 is what 0 costs patches of 4 pixels


def test_frames_lie_at_a_gap_that_fits_and_the_reference_is_the_earlier() -> None:
    objective = Croco(min_gap=2, max_gap=5)
    assert objective.min_frames == 3
    assert objective.draw(3, np.array([0.99, 0.99])).frames.tolist() == [[0, 2]]
    assert objective.draw(5, np.array([0.99, 0.5])).frames.tolist() == [[0, 4]]
    assert objective.draw(20, np.array([0.0, 0.99])).frames.tolist() == [[17, 19]]
    numbers = np.random.default_rng(0).random((400, 2))
    pairs = np.concatenate([objective.draw(20, each).frames for each in numbers])
    assert set(np.diff(pairs)[:, 0]) == {2, 3, 4, 5}
    assert pairs.min() == 0
    assert pairs.max() == 19
    with pytest.raises(ValueError, match="num_frames must be at least 3, got 2"):
        objective.draw(2, np.zeros(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("min_gap", 0), ("max_gap", 0), ("image_size", 10), ("patch_size", 0), ("channels", 0)),
        *(("mask_ratio", 0.0), ("mask_ratio", 0.001), ("mask_ratio", 0.999), ("width", 10), ("depth", 0)),
        ("num_heads", 0),
    ],
)
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must "):
        Croco(**{name: value})


def test_another_encoder_or_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model must be a vision transformer of images, .*, got Sequential"):
        build_bundle(lambda: small3d(2), croco(), seed=0)
    with pytest.raises(ValueError, match="patch_size must be the encoder's 4, got 2"):
        model_of(Croco(image_size=8, patch_size=2, channels=2))
    with pytest.raises(ValueError, match="image_size must be the size of the views, 12x12, got 8"):
        croco().step(model_of(), batch_of(torch.zeros(1, 2, 2, 12, 12), uniforms=batch(1).uniforms))


def test_where_a_patch_of_the_reference_lies_matters() -> None:
    model, order = model_of(), torch.arange(4)[None]
    reference = torch.rand(1, 4, model["backbone"].feature_dim, dtype=torch.float64)
    seen = reference[:, :2]
    there, elsewhere = (model["head"](seen, order, each) for each in (reference, reference.flip(1)))
    assert not there.allclose(elsewhere)
