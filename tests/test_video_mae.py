import numpy as np
import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.small3d import small3d
from fedssl.models.video_vit import VideoTransformer, video_vit_tiny
from fedssl.objectives.mae import hidden_error
from fedssl.objectives.objective import Batch
from fedssl.objectives.video_mae import VideoMae, standardised, tubelets


def video_mae() -> VideoMae:
    return VideoMae(4, 1, image_size=8, patch_size=4, mask_ratio=0.5, width=12, depth=1, channels=2)


def model_of(objective: VideoMae | None = None) -> nn.ModuleDict:
    return build_bundle(lambda: video_vit_tiny(2, patch_size=4, depth=1), objective or video_mae(), seed=0).double()


def batch(number: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(number, 2, 4, 8, 8, dtype=torch.float64, generator=generator)
    return batch_of(clips, uniforms=torch.rand(number, 5, dtype=torch.float64, generator=generator))


def test_1408_of_8_times_14_times_14_tubelets_are_hidden_176_at_each_time() -> None:
    objective = VideoMae()
    assert objective.grid == (8, 14, 14)
    assert objective.num_patches - objective.num_kept == 176
    assert objective.grid[0] * (objective.num_patches - objective.num_kept) == 1408


def test_the_same_patches_are_hidden_at_all_times_and_the_rest_is_seen() -> None:
    objective, what = video_mae(), batch(1)
    model = model_of()
    seen: list[tuple[Tensor, Tensor]] = []
    model["head"].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[:2]))
    objective.step(model, what)
    tokens, order = seen[0]
    kept = order[0, : tokens.shape[1]].view(2, 2)
    assert torch.equal(kept[1], kept[0] + 4)
    assert sorted(order[0].tolist()) == list(range(8))
    assert set(kept[0].tolist()) == set(what.uniforms[0, 1:].argsort()[:2].tolist())
    torch.testing.assert_close(tokens, model["backbone"].body.tokens(what.views[0], kept.flatten()[None]))


def test_what_is_hidden_reaches_the_loss_as_a_target_alone() -> None:
    objective, what = video_mae(), batch(1)
    model, first, *_, last = model_of(), *what.uniforms[0, 1:].argsort().tolist()
    outputs: list[Tensor] = []
    model["head"].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    for place in (first, last):
        clips = what.views[0].clone()
        top, left = 4 * (place // 2), 4 * (place % 2)
        clips[..., top : top + 4, left : left + 4] = 0.5
        objective.step(model, batch_of(clips, uniforms=what.uniforms))
    objective.step(model, what)
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[2])


def test_tubelets_put_back_at_their_places_are_the_clip() -> None:
    clips = torch.rand(2, 3, 4, 6, 4)
    parts = tubelets(clips, 2, 2)
    assert parts.shape == (2, 2, 6, 8, 3)
    back = torch.zeros_like(clips)
    for time in range(2):
        for number in range(6):
            top, left = 2 * (number // 2), 2 * (number % 2)
            block = parts[:, time, number].view(2, 2, 2, 2, 3).permute(0, 4, 1, 2, 3)
            back[:, :, 2 * time : 2 * time + 2, top : top + 2, left : left + 2] = block
    assert torch.equal(back, clips)


@pytest.mark.parametrize("pixels", [2, 32, 512])
def test_predicting_zero_costs_what_the_unbiased_deviation_leaves(pixels: int) -> None:
    parts = torch.rand(2, 3, 4, pixels, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = standardised(parts)
    hidden = torch.ones(2, 4, dtype=torch.bool)
    rest = parts.std(dim=3) / (parts.std(dim=3) + 1e-6)  # what the 1e-6 in the denominator leaves
    expected = (pixels - 1) / pixels * rest.square().mean().item()
    assert hidden_error(torch.zeros_like(target.flatten(3)), target.flatten(3), hidden).item() == pytest.approx(
        expected, abs=1e-9
    )
    assert expected == pytest.approx((pixels - 1) / pixels, rel=1e-3)


def test_channels_are_standardised_apart_by_a_slow_loop() -> None:
    parts = torch.rand(1, 1, 1, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for channel in range(2):
        values = parts[0, 0, 0, :, channel].numpy()
        expected = (values - values.mean()) / (values.std(ddof=1) + 1e-6)
        np.testing.assert_allclose(standardised(parts)[0, 0, 0, :, channel], expected, atol=1e-12)


def test_the_decoder_puts_each_tubelet_at_its_place() -> None:
    head = model_of()["head"].eval()
    placed: list[Tensor] = []
    head.blocks.register_forward_pre_hook(lambda _module, inputs: placed.append(inputs[0]))
    tokens = torch.rand(1, 2, 192, dtype=torch.float64)
    order = torch.tensor([[2, 0, 1, 3]])
    assert head(tokens, order, (1, 2, 2)).shape == (1, 4, 64)
    embedded, mask = head.embed(tokens)[0], head.mask_token[0, 0]
    positions = placed[0][0] - torch.stack((embedded[1], mask, embedded[0], mask))
    assert torch.cdist(positions, positions).add(torch.eye(4)).min() > 0.1
    head(tokens.flip(1), order[:, [1, 0, 2, 3]], (1, 2, 2))
    torch.testing.assert_close(placed[1], placed[0])


def test_the_mask_of_a_clip_and_its_gradient_do_not_depend_on_the_batch() -> None:
    objective, what = video_mae(), batch(3)
    model = model_of()
    parameters = list(model.parameters())
    together = torch.autograd.grad(objective.step(model, what).loss, parameters)
    singles = [what.where(torch.arange(3) == place) for place in range(3)]
    alone = [torch.autograd.grad(objective.step(model, single).loss, parameters) for single in singles]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0), rtol=1e-5, atol=1e-9)


def test_a_clip_without_contrast_has_finite_gradients() -> None:
    model = model_of()
    flat = batch_of(torch.full((1, 2, 4, 8, 8), 0.7, dtype=torch.float64), uniforms=batch(1).uniforms)
    video_mae().step(model, flat).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_few_steps_learn_a_batch_by_heart() -> None:
    objective, what = video_mae(), batch(2)
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective.step(model, what).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_clips_have_the_stride_or_the_greatest_that_fits() -> None:
    objective = VideoMae(clip_frames=4, stride=3)
    assert objective.draw(12, np.array([0.99])).frames.tolist() == [[2, 5, 8, 11]]
    assert objective.draw(8, np.array([0.5])).frames.tolist() == [[1, 3, 5, 7]]
    assert objective.draw(4, np.array([0.99])).frames.tolist() == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="num_frames must be at least 4, got 3"):
        objective.draw(3, np.zeros(1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("clip_frames", 0), ("clip_frames", 5), ("stride", 0), ("image_size", 10), ("patch_size", 0)),
        *(("tubelet_frames", 0), ("channels", 0), ("mask_ratio", 0.0), ("mask_ratio", 1.0), ("width", 10)),
        *(("depth", 0), ("num_heads", 0)),
    ],
)
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must "):
        VideoMae(**{name: value})


def test_another_encoder_or_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model must be a transformer of tubelets, .*, got Sequential"):
        build_bundle(lambda: small3d(2), video_mae(), seed=0)
    with pytest.raises(ValueError, match=r"must be the encoder's \(2, 4\), got \(2, 2\)"):
        model_of(VideoMae(4, image_size=8, patch_size=2, channels=2))
    with pytest.raises(ValueError, match="image_size must be the size of the views, 12x12, got 8"):
        video_mae().step(model_of(), batch_of(torch.zeros(1, 2, 4, 12, 12), uniforms=batch(1).uniforms))


def test_an_encoder_of_clips_sees_any_number_of_tubelets_and_no_parts_of_one() -> None:
    encoder = video_vit_tiny(2, patch_size=4, depth=1).eval()
    assert encoder.feature_map(torch.rand(2, 2, 6, 8, 12)).shape == (2, 192, 3, 2, 3)
    assert encoder(torch.rand(2, 2, 2, 4, 4)).shape == (2, encoder.feature_dim)
    for size, name in (((3, 8, 8), "frames"), ((4, 6, 8), "height"), ((4, 8, 6), "width")):
        with pytest.raises(ValueError, match=f"{name} must be a multiple of"):
            encoder(torch.rand(1, 2, *size))


def test_tokens_of_a_subset_are_those_of_a_clip_that_has_no_others() -> None:
    encoder = video_vit_tiny(1, patch_size=4, depth=2).eval()
    body = encoder.body
    assert isinstance(body, VideoTransformer)
    clips = torch.rand(1, 1, 4, 8, 8)
    kept = torch.tensor([[5, 0, 3]])
    other = clips.clone()
    other[..., 2:, :4, :4] = 0  # tubelet 4
    assert torch.equal(body.tokens(clips, kept), body.tokens(other, kept))
    assert not torch.equal(body.tokens(clips), body.tokens(other))
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(0))[None]
    torch.testing.assert_close(body.tokens(clips, shuffled), body.tokens(clips)[:, shuffled[0]])
