"""The vision transformer: its tokens, its names of tensors, its positions and its gradients."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torchvision.models.vision_transformer import VisionTransformer

from fedssl.models.vit import VisionTransformerEncoder, sincos_positions, take, vit_tiny


def images(number: int = 2, channels: int = 3, size: int = 8, frames: int = 1) -> Tensor:
    return torch.rand(number, channels, frames, size, size, generator=torch.Generator().manual_seed(0))


def tiny(channels: int = 3, size: int = 8, depth: int = 1) -> VisionTransformerEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = vit_tiny(channels, size, patch_size=4, depth=depth)
    assert isinstance(encoder, VisionTransformerEncoder)
    return encoder


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_become_a_map_and_its_mean_the_feature(channels: int) -> None:
    encoder = tiny(channels, size=12).eval()
    clips = images(2, channels, 12, frames=2)
    tokens = encoder.feature_map(clips)
    assert tokens.shape == (2, 192, 2, 3, 3)
    torch.testing.assert_close(encoder(clips), tokens.mean(dim=(2, 3, 4)))
    torch.testing.assert_close(tokens[:, :, 1], encoder.encode(clips[:, :, 1:])[:, 1:].mT.unflatten(2, (3, 3)))


def test_torchvision_loads_the_tensors_and_its_class_token_is_ours() -> None:
    encoder = tiny(depth=2).eval()
    plain = VisionTransformer(image_size=8, patch_size=4, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768).eval()
    plain.heads = nn.Identity()
    stripped = {name.removeprefix("body."): tensor for name, tensor in encoder.state_dict().items()}
    plain.load_state_dict(stripped, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(encoder.normalized(images())), encoder.encode(images())[:, 0])


def test_the_published_size_is_five_and_a_half_million_weights() -> None:
    assert sum(parameter.numel() for parameter in vit_tiny(image_size=224, patch_size=16).parameters()) == 5_524_416


def test_an_order_is_undone_by_its_argsort() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens, order = torch.rand(3, 7, 2, generator=generator), torch.rand(3, 7, generator=generator).argsort(dim=1)
    assert torch.equal(take(take(tokens, order), order.argsort(dim=1)), tokens)
    assert torch.equal(take(tokens, order)[1, 4], tokens[1, order[1, 4]])


def test_all_patches_in_another_order_are_the_same_tokens_in_that_order() -> None:
    encoder, order = tiny().eval(), torch.tensor([[2, 0, 3, 1], [1, 3, 0, 2]])
    everything = encoder.encode(images())
    shuffled = encoder.encode(images(), order)
    torch.testing.assert_close(shuffled[:, 1:], take(everything[:, 1:], order))
    torch.testing.assert_close(shuffled[:, 0], everything[:, 0])


def test_what_is_not_kept_is_not_seen() -> None:
    encoder, kept = tiny().eval(), torch.tensor([[0, 3], [0, 3]])
    altered = images().clone()
    altered[..., :4, 4:] = 0  # patch 1
    assert torch.equal(encoder.encode(images(), kept), encoder.encode(altered, kept))
    assert not torch.equal(encoder.encode(images()), encoder.encode(altered))


def test_smaller_crops_are_seen_with_interpolated_positions() -> None:
    encoder = tiny(size=16).eval()
    assert encoder.feature_map(images(size=8)).shape == (2, 192, 1, 2, 2)
    own = encoder.body.encoder.pos_embedding[0, 1:].unflatten(0, (4, 4))
    halves = own.unflatten(1, (2, 2)).unflatten(0, (2, 2)).mean(dim=(1, 3)).flatten(0, 1)
    torch.testing.assert_close(encoder._positions(2, 2), halves)
    torch.testing.assert_close(encoder._positions(4, 3).unflatten(0, (4, 3))[:, 1], own[:, 1:3].mean(dim=1))


def test_positions_tell_patches_apart_and_rows_from_columns() -> None:
    positions = sincos_positions(3, 8)[0]
    assert not positions[0].any()
    assert torch.cdist(positions[1:], positions[1:]).add(torch.eye(9)).min() > 0.1
    torch.testing.assert_close(positions[1:].unflatten(0, (3, 3))[1, 2, :4], positions[1 + 3, :4])  # the row's half
    torch.testing.assert_close(positions[1:].square().sum(dim=1), torch.full((9,), 4.0))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_single_examples_average_to_that_of_the_batch() -> None:
    encoder, batch = tiny().double().train(), images(3).double()
    encoder(batch).square().sum(dim=1).mean().backward()
    parameters = {name: value.detach() for name, value in encoder.named_parameters()}

    def one(values: dict[str, Tensor], image: Tensor) -> Tensor:
        feature: Tensor = functional_call(encoder, values, (image[None],))
        return feature.square().sum()

    single = vmap(grad(one), in_dims=(None, 0))(parameters, batch)
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(single[name].mean(dim=0), parameter.grad)


def test_nothing_is_changed_in_place_and_nothing_is_random_in_training() -> None:
    encoder, clips = tiny().train(), images()
    handles = [module.register_forward_pre_hook(_keep) for module in encoder.modules()]
    handles += [module.register_forward_hook(_compare) for module in encoder.modules()]
    assert torch.equal(encoder(clips), encoder(clips))
    assert len(handles) > 20


def _keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    module.kept = [tensor.clone() for tensor in inputs]


def _compare(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
    assert all(torch.equal(before, after) for before, after in zip(module.kept, inputs, strict=True))


@pytest.mark.parametrize(
    ("name", "value"), [("in_channels", 0), ("patch_size", 0), ("depth", 0), ("image_size", 30), ("image_size", 0)]
)
def test_arguments_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        vit_tiny(**{name: value})


def test_an_image_that_is_no_number_of_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="height and width must be multiples of 4, got 10x10"):
        tiny()(images(size=10))
