"""A small 3D convolutional network that a single CPU core can train."""

from itertools import pairwise

from torch import nn

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder

_STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))  # of all layers but the last


def small3d(in_channels: int = 1, width: int = 16, last_stride: int = 2) -> Encoder:
    """Return four layers of 3x3x3 convolution, batch normalisation and ReLU, as C3D (Tran 2015) but small.

    Time is reduced by 4 and space by `8 * last_stride`, rounded up: clips `[batch, in_channels, 8, 32, 32]` give the
    map `[batch, 4 * width, 2, 2, 2]`. Any number of frames and any size from one pixel is legal.

    Args:
        in_channels: Channels of a clip.
        width: Channels of the first layer; the others have 2, 4 and 4 times as many.
        last_stride: Stride of the last layer in space; 1 gives a map twice as fine, with as many weights.

    Returns:
        An encoder of `4 * width` features.

    Raises:
        ValueError: If an argument is below 1.
    """
    at_least(1, in_channels=in_channels, width=width, last_stride=last_stride)
    widths = (in_channels, width, 2 * width, 4 * width, 4 * width)
    strides = (*_STRIDES, (1, last_stride, last_stride))
    layers = [_layer(before, after, stride) for (before, after), stride in zip(pairwise(widths), strides, strict=True)]
    return Encoder(nn.Sequential(*layers), feature_dim=widths[-1])


def _layer(in_channels: int, out_channels: int, stride: tuple[int, int, int]) -> nn.Sequential:
    """Return one convolution with its normalisation; the convolution's bias would be cancelled by it."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(),
    )
