"""Residual networks of clips (Tran 2018, "A Closer Look at Spatiotemporal Convolutions"), without weights."""

from collections import OrderedDict
from typing import cast

from torch import nn
from torchvision.models import video

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder

FEATURE_DIM = 512
RGB = 3


def r3d_18(in_channels: int = 3) -> Encoder:
    """Return R3D-18: 18 layers of full 3D convolution.

    Clips `[batch, in_channels, frames, height, width]` give the map
    `[batch, 512, frames / 8, height / 16, width / 16]`, rounded up.

    Args:
        in_channels: Channels of a clip; if not 3, the first convolution is made anew for them.

    Returns:
        An encoder of 512 features.

    Raises:
        ValueError: If `in_channels` is below 1.
    """
    return _encoder(video.r3d_18(weights=None), in_channels)


def r2plus1d_18(in_channels: int = 3) -> Encoder:
    """Return R(2+1)D-18: every 3D convolution split into one of space and one of time.

    The shapes are those of `r3d_18`.

    Args:
        in_channels: Channels of a clip; if not 3, the first convolution is made anew for them.

    Returns:
        An encoder of 512 features.

    Raises:
        ValueError: If `in_channels` is below 1.
    """
    return _encoder(video.r2plus1d_18(weights=None), in_channels)


def _encoder(network: nn.Module, in_channels: int) -> Encoder:
    """Keep the stem and the four stages of `network`; pooling belongs to the encoder, the classifier to nobody."""
    at_least(1, in_channels=in_channels)
    parts = dict(network.named_children())
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    body = nn.Sequential(OrderedDict((name, parts[name]) for name in names))
    if in_channels != RGB:
        stem = cast(nn.Sequential, parts["stem"])
        stem[0] = _with_in_channels(cast(nn.Conv3d, stem[0]), in_channels)
    return Encoder(body, FEATURE_DIM)


def _with_in_channels(first: nn.Conv3d, in_channels: int) -> nn.Conv3d:
    """Return a fresh convolution shaped as `first` but for its input, initialised as torchvision does."""
    _, _, frames, height, width = first.weight.shape
    kernel, padding = (frames, height, width), (frames // 2, height // 2, width // 2)
    fresh = nn.Conv3d(in_channels, first.out_channels, kernel, stride=(1, 2, 2), padding=padding, bias=False)
    nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
    return fresh
