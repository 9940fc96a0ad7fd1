"""torchvision's networks of clips: their features, their tensors, and the clips that they take."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import video

from fedssl.models.encoder import Encoder
from fedssl.models.video import MaxPool, mc3_18, r3d_18, s3d
from fedssl.models.video_attention import mvit_v2_s, swin3d_t


def small_mvit(in_channels: int = 3) -> Encoder:
    return mvit_v2_s(in_channels, clip_frames=4, image_size=32)


SHAPES: list[tuple[Callable[[int], Encoder], tuple[int, ...]]] = [
    (mc3_18, (512, 8, 2, 2)),
    (s3d, (1024, 1, 1, 1)),
    (swin3d_t, (768, 4, 1, 1)),
    (small_mvit, (768, 4, 1, 1)),
]


@pytest.mark.parametrize(("make", "shape"), SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_clip_becomes_a_map_and_its_mean_the_feature(
    make: Callable[[int], Encoder], shape: tuple[int, ...], channels: int
) -> None:
    encoder, clips = make(channels).eval(), torch.rand(1, channels, 8, 32, 32)
    with torch.no_grad():
        found = encoder.feature_map(clips)
        assert found.shape == (1, *shape)
        torch.testing.assert_close(encoder(clips), found.mean(dim=(2, 3, 4)))
    assert encoder.feature_dim == shape[0]


@pytest.mark.parametrize("make", [swin3d_t, mc3_18])
def test_torchvision_s_tensors_fit_and_give_torchvision_s_features(make: Callable[[int], Encoder]) -> None:
    plain, encoder = getattr(video, make.__name__)().eval(), make(3).eval()
    last = {"swin3d_t": "head", "mc3_18": "fc"}[make.__name__]
    encoder.body.load_state_dict({k: v for k, v in plain.state_dict().items() if not k.startswith(last)}, strict=True)
    setattr(plain, last, nn.Identity())
    clips = torch.rand(1, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(clips), plain(clips))


def test_s3d_has_torchvision_s_map() -> None:
    plain, encoder = video.s3d().eval(), s3d().eval()
    encoder.body.load_state_dict({k: v for k, v in plain.state_dict().items() if not k.startswith("classifier")})
    clips = torch.rand(1, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.feature_map(clips), plain.features(clips))


def test_mvit_has_torchvision_s_tensors_and_its_class_token() -> None:
    plain, encoder = video.mvit_v2_s().eval(), mvit_v2_s().eval()
    plain.head = nn.Identity()
    encoder.body.load_state_dict(plain.state_dict(), strict=True)
    seen: list[torch.Tensor] = []
    encoder.body.norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    clips = torch.rand(1, 3, 16, 224, 224)
    with torch.no_grad():
        assert encoder.feature_map(clips).shape == (1, 768, 8, 7, 7)
        torch.testing.assert_close(seen[0][:, 0], plain(clips))


def test_mvit_sees_clips_of_other_sizes_by_interpolated_positions() -> None:
    encoder = small_mvit().eval()
    with torch.no_grad():
        assert encoder.feature_map(torch.rand(1, 3, 6, 64, 40)).shape == (1, 768, 3, 2, 2)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [((1, 3, 3), (1, 2, 2), (0, 1, 1)), (3, 1, 1), (2, 2, 0)])
def test_maxima_of_one_direction_after_the_other_are_those_of_the_block_and_so_are_gradients(
    kernel: int | tuple[int, ...], stride: int | tuple[int, ...], padding: int | tuple[int, ...]
) -> None:
    clips = torch.randn(2, 3, 7, 9, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, theirs = (kind(kernel, stride, padding)(clips) for kind in (MaxPool, nn.MaxPool3d))
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(pooled.square().sum(), clips)[0] for pooled in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("make", [s3d, small_mvit])
def test_no_pooling_is_left_whose_gradient_is_not_deterministic(make: Callable[[], Encoder]) -> None:
    pools = [module for module in make().modules() if isinstance(module, nn.MaxPool3d)]
    assert pools
    assert all(type(pool) is MaxPool for pool in pools)


@pytest.mark.parametrize("size", [(4, 17, 17), (5, 16, 17), (5, 17, 16)])
def test_s3d_refuses_clips_that_its_poolings_would_leave_nothing_of(size: tuple[int, int, int]) -> None:
    encoder = s3d().eval()
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 5, 17, 17)).shape == (1, 1024)
    frames, height, width = size
    text = (
        f"clips must have at least 5 frames of 17x17 pixels for this encoder, got {frames} frames of {height}x{width}"
    )
    with pytest.raises(ValueError, match=text):
        encoder(torch.rand(1, 3, *size))


def test_statistics_of_s3d_follow_its_batches_as_those_of_the_residual_networks_do() -> None:
    momenta = [
        {layer.momentum for layer in make().modules() if isinstance(layer, nn.BatchNorm3d)} for make in (s3d, r3d_18)
    ]
    assert momenta == [{0.1}, {0.1}]


@pytest.mark.parametrize("make", [mc3_18, s3d, swin3d_t, mvit_v2_s])
def test_channels_must_be_positive(make: Callable[..., Encoder]) -> None:
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        make(in_channels=0)


@pytest.mark.parametrize(("name", "value"), [("clip_frames", 3), ("image_size", 48), ("clip_frames", 0)])
def test_a_size_that_mvit_cannot_divide_is_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a multiple of"):
        mvit_v2_s(**{name: value})
