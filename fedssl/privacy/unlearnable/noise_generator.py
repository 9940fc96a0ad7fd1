"""The network that draws a pattern: down, residual blocks, up (Johnson 2016, "Perceptual Losses"; Zhang 2023)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least

_STRIDE = 4
SMALLEST = _STRIDE + 1
"""Least height and width of a pattern in pixels: a block needs a map of 2 to mirror its edge."""


class NoiseGenerator(nn.Module):
    """Maps a picture to a pattern of the same size.

    It is used in training mode: batch normalisation takes the statistics of the picture at hand.

    Args:
        channels: Of picture and pattern.
        width: Channels at full size; there are 2 and 4 times as many at a half and a quarter of it.
        blocks: Residual blocks at a quarter of the size.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        at_least(1, channels=channels, width=width)
        at_least(0, blocks=blocks)
        half, quarter = 2 * width, 4 * width
        self.body = nn.Sequential(
            _Mirror(3),
            _convolution(nn.Conv2d(channels, width, 7, bias=False)),
            _convolution(nn.Conv2d(width, half, 3, 2, padding=1, bias=False)),
            _convolution(nn.Conv2d(half, quarter, 3, 2, padding=1, bias=False)),
            *(_Block(quarter) for _ in range(blocks)),
            _convolution(nn.ConvTranspose2d(quarter, half, 3, 2, padding=1, output_padding=1, bias=False)),
            _convolution(nn.ConvTranspose2d(half, width, 3, 2, padding=1, output_padding=1, bias=False)),
            _Mirror(3),
            nn.Conv2d(width, channels, 7),
            nn.Tanh(),
        )

    def forward(self, picture: Tensor) -> Tensor:
        """Return patterns `[n, channels, height, width]` in [-1, 1] for pictures of that shape.

        Raises:
            ValueError: A side is below `SMALLEST`.
        """
        height, width = picture.shape[2:]
        at_least(SMALLEST, height=height, width=width)
        padded = F.pad(picture, (0, -width % _STRIDE, 0, -height % _STRIDE))
        pattern: Tensor = self.body(padded)[:, :, :height, :width]
        return pattern


class _Block(nn.Module):
    """Two convolutions with a shortcut around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _Mirror(1),
            _convolution(nn.Conv2d(width, width, 3, bias=False)),
            _Mirror(1),
            nn.Conv2d(width, width, 3, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.body(x)
        return added


class _Mirror(nn.Module):
    """Reflection padding; the gradient of PyTorch's own differs from run to run on a GPU."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            before = x.narrow(dim, 1, self.margin).flip(dim)
            after = x.narrow(dim, x.shape[dim] - 1 - self.margin, self.margin).flip(dim)
            x = torch.cat((before, x, after), dim=dim)
        return x


def _convolution(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    """Return a convolution with what follows it."""
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU())
