"""What augmentation does to pixels: crop, warp, recolour, blur, solarise, each image by its own parameters.

Each pixel is computed by itself, from sums and products of two tensors: no batch and no number of threads changes a bit
of it, as they may in matrix products and reductions.
"""

from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# luma of red, green and blue, and the two colour differences of YIQ
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
GREY = YIQ[:1].repeat(3, axis=0)
CHROMA = np.eye(3) - GREY
_QUARTER = np.linalg.inv(YIQ) @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ YIQ  # chroma turned by a quarter


def crop(clips: Tensor, boxes: NDArray[np.float64], size: int, *, mirrored: bool = False) -> Tensor:
    """Return a box of each clip, resized by bilinear interpolation.

    Args:
        clips: `[n, channels, frames, height, width]` float32.
        boxes: `[n, 4]`: width and height as shares of the image's, negative ones flip; x and y of the centre, the image
            being [-1, 1].
        size: Height and width of the result in pixels.
        mirrored: Whether an image goes on as its mirror image beyond its edges, or as its outermost pixels.

    Returns:
        `[n, channels, frames, size, size]`.
    """
    width, height, x, y = _tensor(boxes, clips).unsqueeze(-1).unbind(1)
    centres = _centres(size, clips.device)
    return _sample(clips, (centres * width + x).unsqueeze(1), (centres * height + y).unsqueeze(2), mirrored=mirrored)


def warp(clips: Tensor, boxes: NDArray[np.float64], maps: NDArray[np.float64], size: int) -> tuple[Tensor, Tensor]:
    """Return a box of each clip, mirrored where it leaves the clip, and turned, sheared and translated, all at once.

    Args:
        clips: `[n, channels, frames, height, width]` float32.
        boxes: `[n, 4]`, see `crop`.
        maps: `[n, 6]` numbers a to f: the result shows at (x, y) what the box has at (ax + by + c, dx + ey + f), both
            being [-1, 1]. (1, 0, 0, 0, 1, 0) is the box.
        size: Height and width of the result in pixels.

    Returns:
        `[n, channels, frames, size, size]`, and which of its pixels `[n, size, size]` come from outside the box.
    """
    a, b, c, d, e, f = _tensor(maps, clips).view(-1, 6, 1, 1).unbind(1)
    width, height, x, y = _tensor(boxes, clips).view(-1, 4, 1, 1).unbind(1)
    across = _centres(size, clips.device)
    down = across.unsqueeze(1)
    column, row = across * a + down * b + c, across * d + down * e + f
    outside = (column.abs() > 1) | (row.abs() > 1)
    return _sample(clips, column * width + x, row * height + y, mirrored=True), outside


def recolour(clips: Tensor, factors: NDArray[np.float64]) -> Tensor:
    """Return clips with another brightness, contrast, saturation and hue: one affine map of each clip's colours.

    Contrast is about the mean grey of the clip, saturation about each pixel's grey, and hue is an angle in the plane
    of colour differences of YIQ, which leaves greys as they are. Until something is clamped, the four commute: their
    order, which torchvision draws, does not matter. Differences from torchvision: it clamps after each of the four, and
    turns hue in HSV.

    Args:
        clips: `[n, channels, frames, height, width]` float32 of 1 channel, which has no saturation or hue, or 3.
        factors: `[n, 4]`: of brightness, contrast and saturation, and the hue in turns. (1, 1, 1, 0) changes nothing,
            a saturation of 0 leaves grey.

    Returns:
        As `clips`; nothing is clamped.
    """
    pixels = clips.flatten(2)
    brightness, contrast, _, _ = factors.T
    grey = YIQ[0] if pixels.shape[1] == 3 else np.ones(1)
    base = _tensor((brightness * (1 - contrast))[:, None] * grey, clips).unsqueeze(-1) * _mean(pixels)
    matrices = _tensor(_matrices(factors, len(grey)), clips)
    mapped = pixels[:, :1] * matrices[:, :, :1]
    for channel in range(1, len(grey)):
        mapped += pixels[:, channel : channel + 1] * matrices[:, :, channel : channel + 1]
    mapped += reduce(torch.add, base.split(1, dim=1))
    return mapped.view_as(clips)


def blur(clips: Tensor, sigmas: NDArray[np.float64]) -> Tensor:
    """Return clips under a Gaussian a tenth as wide as they are, at least 3 pixels (Chen 2020).

    Args:
        clips: `[n, channels, frames, height, width]` float32.
        sigmas: `[n]` standard deviations in pixels, above 0.
    """
    radius = max(1, clips.shape[-1] // 20)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigmas[:, None]) ** 2)
    kernel = _tensor(weights / weights.sum(axis=1, keepdims=True), clips).view(len(clips), -1, 1, 1, 1).unbind(1)
    images = clips.flatten(1, 2)
    for dim, margin in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        padded = F.pad(images, margin, mode="replicate")
        shifted = (padded.narrow(dim, start, images.shape[dim]) for start in range(2 * radius + 1))
        images = reduce(torch.add, (weight * part for weight, part in zip(kernel, shifted, strict=True)))
    return images.view_as(clips)


def solarise(clips: Tensor, threshold: float | Tensor) -> Tensor:
    """Return clips whose pixels in [0, 1] of at least `threshold`, one of all or `[n, 1, 1, 1, 1]`, are inverted."""
    # |1 - x| where it is bright and |0 - x| elsewhere: a fifth of the time of choosing
    return ((clips >= threshold).to(clips.dtype) - clips).abs_()


def _matrices(factors: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    """Return the matrices `[n, channels, channels]` of colours; grey and chroma are scaled apart."""
    brightness, contrast, saturation, hue = np.ascontiguousarray(factors.T)[:, :, None, None]
    if channels == 1:
        return np.asarray(brightness * contrast)
    angle = 2 * np.pi * hue
    chroma = saturation * (np.cos(angle) * CHROMA + np.sin(angle) * _QUARTER)
    return np.asarray(brightness * contrast * (GREY + chroma))


def _mean(pixels: Tensor) -> Tensor:
    """Return the mean `[n, channels, 1]` by halving: a reduction's order of additions may depend on the batch."""
    folded = pixels
    while (width := folded.shape[-1]) > 1:
        half = width // 2
        rest = folded[..., 2 * half :]
        folded = folded[..., :half] + folded[..., half : 2 * half]
        if width % 2:
            folded = torch.cat((folded, rest), dim=-1)
    return folded / pixels.shape[-1]


def _centres(size: int, device: torch.device) -> Tensor:
    """Return the centres of `size` pixels laid side by side on [-1, 1]."""
    return (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1


def _sample(clips: Tensor, x: Tensor, y: Tensor, *, mirrored: bool) -> Tensor:
    """Return what clips have at (x, y), each `[n, size, size]` or broadcast to it, by bilinear interpolation."""
    size = max(x.shape[-1], y.shape[-2])
    grid = torch.empty(len(clips), 2, size, size, device=clips.device)
    grid[:, 0], grid[:, 1] = x, y
    beyond = "reflection" if mirrored else "border"
    images = F.grid_sample(clips.flatten(1, 2), grid.permute(0, 2, 3, 1), "bilinear", beyond, align_corners=False)
    return images.view(*clips.shape[:3], size, size)


def _tensor(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like.device)
