"""Cut and resize with gradients: bilinear interpolation as products of matrices.

`fedssl.training.transforms.crop` shows the same, but its gradient on a GPU differs from run to run.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WHOLE = np.array([[1.0, 1.0, 0.0, 0.0]])
"""The box that is the image."""


def cut(images: Tensor, boxes: NDArray[np.float64], height: int, width: int) -> Tensor:
    """Return a box of each image, resized by bilinear interpolation.

    Args:
        images: `[n, channels, height', width']` float.
        boxes: `[n, 4]`, or `[1, 4]` for all: see `crop`.
        height: Of the result in pixels.
        width: Of the result in pixels.

    Returns:
        `[n, channels, height, width]`.
    """
    across, down, x, y = torch.from_numpy(boxes).to(images.device, images.dtype).unsqueeze(-1).unbind(1)
    rows = _weights(_centres(height, images) * down + y, images.shape[2])
    columns = _weights(_centres(width, images) * across + x, images.shape[3])
    return rows.unsqueeze(1) @ images @ columns.unsqueeze(1).mT


def _centres(number: int, like: Tensor) -> Tensor:
    """Return the centres of `number` pixels laid side by side on [-1, 1]."""
    return (2 * torch.arange(number, device=like.device, dtype=like.dtype) + 1) / number - 1


def _weights(places: Tensor, number: int) -> Tensor:
    """Return `[n, places, number]`: how much each place on [-1, 1] shows of each of `number` pixels."""
    pixels = (((places + 1) * number - 1) / 2).clamp(0, number - 1)
    distances = pixels.unsqueeze(-1) - torch.arange(number, device=places.device, dtype=places.dtype)
    return (1 - distances.abs()).clamp(min=0)
