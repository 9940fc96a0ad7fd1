"""torchvision's convolutional networks of clips, without weights."""

from collections import OrderedDict
from functools import partial, reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import video

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder

RGB = 3
_RESIDUAL = ("stem", "layer1", "layer2", "layer3", "layer4")
_MIN_S3D = (5, 17, 17)  # the last pooling needs two places in each direction


class MaxPool(nn.MaxPool3d):
    """Maxima of one direction after the other: PyTorch's own have no deterministic gradient on GPUs."""

    def forward(self, clips: Tensor) -> Tensor:
        """Return what `torch.nn.MaxPool3d` returns, `[batch, channels, frames', height', width']`."""
        for direction, (kernel, stride, padding) in enumerate(
            zip(*(_of_three(size) for size in (self.kernel_size, self.stride, self.padding)), strict=True), 2
        ):
            sides = [0] * (2 * (4 - direction)) + [padding] * 2
            padded = F.pad(clips, sides, value=float("-inf"))
            shifts = padded.unfold(direction, kernel, stride).unbind(dim=-1)
            clips = reduce(torch.maximum, shifts)
        return clips


def deterministic(network: nn.Module) -> None:
    """Let the maxima of `network` be those of `MaxPool`."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool3d):
                setattr(module, name, MaxPool(child.kernel_size, child.stride, child.padding))


def _of_three(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size,) * 3 if isinstance(size, int) else tuple(size)


class LeastClip(nn.Module):
    """Passes clips on, and refuses those that are too small for what comes next.

    Args:
        least: Fewest frames, height and width.
    """

    def __init__(self, least: tuple[int, int, int]) -> None:
        super().__init__()
        self.least = least

    def forward(self, clips: Tensor) -> Tensor:
        """Return `clips` `[batch, channels, frames, height, width]`.

        Raises:
            ValueError: They are too small.
        """
        shape = tuple(clips.shape[2:])
        if any(size < least for size, least in zip(shape, self.least, strict=True)):
            wanted, got = (f"{frames} frames of {height}x{width}" for frames, height, width in (self.least, shape))
            raise ValueError(f"clips must have at least {wanted} pixels for this encoder, got {got}")
        return clips


def r3d_18(in_channels: int = 3) -> Encoder:
    """Return R3D-18: 18 layers of full 3D convolution (Tran 2018, "A Closer Look at Spatiotemporal Convolutions").

    Clips `[batch, in_channels, frames, height, width]` give the map
    `[batch, 512, frames / 8, height / 16, width / 16]`, rounded up.

    Args:
        in_channels: Channels of a clip; if not 3, the first convolution is made anew for them.

    Returns:
        An encoder of 512 features.

    Raises:
        ValueError: If `in_channels` is below 1.
    """
    return _residual(video.r3d_18(weights=None), in_channels)


def r2plus1d_18(in_channels: int = 3) -> Encoder:
    """Return R(2+1)D-18 (Tran 2018): every 3D convolution split into one of space and one of time.

    Shapes and arguments are those of `r3d_18`.
    """
    return _residual(video.r2plus1d_18(weights=None), in_channels)


def mc3_18(in_channels: int = 3) -> Encoder:
    """Return MC3-18 (Tran 2018): 3D convolutions in the first stage, and of single frames in the others.

    Arguments are those of `r3d_18`; the map has as many frames as the clip.
    """
    return _residual(video.mc3_18(weights=None), in_channels)


def s3d(in_channels: int = 3) -> Encoder:
    """Return S3D (Xie 2018, "Rethinking Spatiotemporal Feature Learning"): separable Inception blocks.

    Clips `[batch, in_channels, frames, height, width]` give the map `[batch, 1024, frames / 8, height / 32,
    width / 32]`; the smallest have 5 frames of 17 pixels. Batch normalisation follows its batches as in the other
    encoders: torchvision's momentum of 0.001 is for a long training, and hardly moves the statistics in a short one.

    Args:
        in_channels: Channels of a clip; if not 3, the first convolution is made anew for them.

    Returns:
        An encoder of 1024 features.

    Raises:
        ValueError: If `in_channels` is below 1.
    """
    at_least(1, in_channels=in_channels)
    features = cast(nn.Sequential, video.s3d(weights=None, norm_layer=partial(nn.BatchNorm3d, eps=1e-3)).features)
    if in_channels != RGB:
        first = cast(nn.Sequential, cast(nn.Sequential, features[0])[0])
        first[0] = with_in_channels(cast(nn.Conv3d, first[0]), in_channels)
    deterministic(features)
    return Encoder(nn.Sequential(OrderedDict(least=LeastClip(_MIN_S3D), features=features)), 1024)


def _residual(network: nn.Module, in_channels: int) -> Encoder:
    """Keep the stem and the four stages of `network`; pooling belongs to the encoder, the classifier to nobody."""
    at_least(1, in_channels=in_channels)
    parts = dict(network.named_children())
    if in_channels != RGB:
        stem = cast(nn.Sequential, parts["stem"])
        stem[0] = with_in_channels(cast(nn.Conv3d, stem[0]), in_channels)
    return Encoder(nn.Sequential(OrderedDict((name, parts[name]) for name in _RESIDUAL)), 512)


def with_in_channels(first: nn.Conv3d, in_channels: int) -> nn.Conv3d:
    """Return a fresh convolution shaped as `first` but for its input, initialised as torchvision's residual ones."""
    kernel, stride, padding = (
        cast(tuple[int, int, int], size) for size in (first.kernel_size, first.stride, first.padding)
    )
    fresh = nn.Conv3d(in_channels, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
    nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
    return fresh
