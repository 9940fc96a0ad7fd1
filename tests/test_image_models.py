"""Encoders of images: shapes, independence of examples, and gradients of one example at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedssl.models import bundle
from fedssl.models.encoder import Encoder
from fedssl.models.image import resnet18, resnet50, small_resnet
from fedssl.objectives.cvrl import Cvrl


def images(number: int = 3, channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(number, channels, 1, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("make", "features"), [(resnet18, 512), (resnet50, 2048), (small_resnet, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_becomes_one_feature(make: Callable[..., Encoder], features: int, channels: int) -> None:
    encoder = make(in_channels=channels).eval()
    with torch.no_grad():
        assert encoder(images(2, channels, 16)).shape == (2, encoder.feature_dim) == (2, features)
        assert encoder.feature_map(images(2, channels, 16)).shape[:3] == (2, features, 1)


def test_the_feature_of_a_clip_is_the_mean_over_its_frames() -> None:
    encoder = small_resnet(width=2).eval()
    first, second = images(2), images(2).flip(0)
    together = encoder(torch.cat((first, second), dim=2))
    torch.testing.assert_close(together, (encoder(first) + encoder(second)) / 2)


def test_pixels_are_normalised_by_the_encoder_and_the_numbers_are_no_tensors_of_the_model() -> None:
    encoder = small_resnet(width=2, mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3])
    seen = encoder.normalized(torch.tensor([0.6, 0.6, 0.6]).view(1, 3, 1, 1, 1))
    torch.testing.assert_close(seen.flatten(), torch.tensor([1.0, 1.0, 1.0]))
    assert not {"mean", "std"} & set(encoder.state_dict())


def losses(encoder: Encoder, batch: Tensor) -> Tensor:
    return encoder(batch).square().sum(dim=1)


@pytest.mark.parametrize("make", [lambda: small_resnet(width=4, norm="group"), lambda: resnet18(norm="group")])
def test_gradients_of_single_examples_average_to_that_of_the_batch(make: Callable[[], Encoder]) -> None:
    encoder, batch = make().double().train(), images(3, size=8).double()
    losses(encoder, batch).mean().backward()
    parameters = {name: value.detach() for name, value in encoder.named_parameters()}

    def one(values: dict[str, Tensor], image: Tensor) -> Tensor:
        feature: Tensor = functional_call(encoder, values, (image[None],))
        return feature.square().sum()

    single = vmap(grad(one), in_dims=(None, 0))(parameters, batch)
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(single[name].mean(dim=0), parameter.grad)


@pytest.mark.parametrize("make", [small_resnet, resnet18, resnet50])
def test_hooks_see_every_layer_because_nothing_is_changed_in_place(make: Callable[..., Encoder]) -> None:
    encoder, seen = make(norm="group"), set()
    for name, module in encoder.named_modules():
        if not list(module.children()):
            module.register_full_backward_hook(lambda _, __, ___, name=name: seen.add(name))
    losses(encoder, images(2, size=8)).sum().backward()
    assert {name for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d | nn.GroupNorm)} <= seen


def test_batch_normalisation_couples_examples_and_group_normalisation_does_not() -> None:
    batch = images(4)
    for norm, alike in (("group", True), ("batch", False)):
        encoder = small_resnet(width=4, norm=norm).train()
        assert torch.allclose(encoder(batch)[:2], encoder(batch[:2]), atol=1e-5) is alike


def test_frozen_norms_keep_their_statistics_while_the_rest_trains() -> None:
    model = bundle.build_bundle(lambda: small_resnet(width=2), Cvrl(hidden=4, dim=2), seed=0, frozen_norms=True)
    before = bundle.arrays(model, None)
    model.train()
    model["backbone"](images()).sum().backward()
    names = bundle.norm_names(model)
    after = bundle.arrays(model, None)
    assert all((after[name] == before[name]).all() for name in names)
    assert {name.split(".")[-1] for name in names} == {
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    assert all(parameter.grad is not None for parameter in model["backbone"].parameters())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"norm": "layer"}, "norm must be one of batch, group, got layer"),
        ({"mean": [0.1, 0.2]}, r"mean must be 1 or 3 numbers, got \[0.1, 0.2\]"),
        ({"std": [0.0]}, r"std must be above 0, got \[0.0\]"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        small_resnet(**arguments)
