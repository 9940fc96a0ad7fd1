"""Defences that hide a part of an image or mix two of them, with their targets.

Cutout (DeVries & Taylor 2017), mixup (Zhang 2018), CutMix (Yun 2019).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedssl.checks import above, within
from fedssl.privacy.unlearnable.defences.defence import Defence

_GREY = 0.5


@dataclass(frozen=True, slots=True)
class Cutout(Defence):
    """Makes a square of each image grey; its centre lies anywhere, so that a part of it may lie outside.

    Args:
        share: Side of the square as a share of the image's.

    Raises:
        ValueError: The share is not in [0, 1].
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        within(0, 1, share=self.share)

    def batch(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the images with their squares, and the targets as they are."""
        holes = _boxes(np.full(len(images), self.share), images, rng)
        return images.masked_fill(holes, _GREY), targets


@dataclass(frozen=True, slots=True)
class Mixup(Defence):
    """Replaces each image and its target by a weighted mean with those of another one of the batch.

    Args:
        alpha: The weight of a batch has the distribution Beta(alpha, alpha).

    Raises:
        ValueError: `alpha` is not above 0.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        above(0, alpha=self.alpha)

    def batch(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the means."""
        weight, others = float(rng.beta(self.alpha, self.alpha)), _others(images, rng)
        return torch.lerp(images[others], images, weight), torch.lerp(targets[others], targets, weight)


@dataclass(frozen=True, slots=True)
class CutMix(Defence):
    """Puts a box of another image of the batch into each, and weighs their targets by what is seen of the two.

    Args:
        alpha: The share of the images that is kept has the distribution Beta(alpha, alpha), until the part of the box
            that lies outside is taken off.

    Raises:
        ValueError: `alpha` is not above 0.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        above(0, alpha=self.alpha)

    def batch(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the mixed images and targets."""
        side = np.sqrt(1 - rng.beta(self.alpha, self.alpha, size=1))
        box, others = _boxes(side, images, rng), _others(images, rng)
        kept = 1 - float(box.float().mean())
        return torch.where(box, images[others], images), torch.lerp(targets[others], targets, kept)


def _others(images: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.permutation(len(images))).to(images.device)


def _boxes(shares: NDArray[np.float64], images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return which pixels `[n, 1, height, width]` lie in boxes, whose sides are `shares` `[n]` of the images'."""
    inside = []
    for length in images.shape[-2:]:
        sides = np.rint(shares * length)
        first = np.floor(rng.random(len(shares)) * length) - sides // 2
        pixels = np.arange(length)
        inside.append((pixels >= first[:, None]) & (pixels < (first + sides)[:, None]))
    rows, columns = inside
    return torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
