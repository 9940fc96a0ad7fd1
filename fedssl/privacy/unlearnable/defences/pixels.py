"""Defences that lose small changes of pixels: JPEG, grey, few levels ("Image Shortcut Squeezing", Liu 2023), blur."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedssl.checks import above, within
from fedssl.privacy.unlearnable.defences.defence import Change, Defence
from fedssl.privacy.unlearnable.noise import LEVELS
from fedssl.training.transforms import YIQ, blur


@dataclass(frozen=True, slots=True)
class Jpeg(Defence):
    """Compresses each image and opens it again.

    Args:
        quality: Of Pillow, 1 to 95.

    Raises:
        ValueError: The quality is out of range.
    """

    quality: int = 10

    def __post_init__(self) -> None:
        within(1, 95, quality=self.quality)

    def change(self, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> Change:
        """Return the round trip."""
        return self._round_trips

    def _round_trips(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.stack([self._round_trip(image) for image in images])

    def _round_trip(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=self.quality)
        with Image.open(file) as opened:
            return np.asarray(opened, dtype=np.uint8).reshape(image.shape)


@dataclass(frozen=True, slots=True)
class Grey(Defence):
    """Gives every channel of a pixel its luma."""

    def change(self, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> Change:
        """Return the loss of colour."""
        return _grey


def _grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if images.shape[-1] == 1:
        return images
    luma = np.rint(images @ YIQ[0]).astype(np.uint8)
    return np.repeat(luma[..., None], 3, axis=-1)


@dataclass(frozen=True, slots=True)
class BitDepth(Defence):
    """Rounds pixels to the nearest of few levels, evenly spaced from 0 to 255.

    Args:
        bits: There are two to the power of this, 1 to 8.

    Raises:
        ValueError: The number of bits is out of range.
    """

    bits: int = 2

    def __post_init__(self) -> None:
        within(1, 8, bits=self.bits)

    def change(self, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> Change:
        """Return the rounding."""
        return self._rounded

    def _rounded(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        step = LEVELS / (2**self.bits - 1)
        levels: NDArray[np.uint8] = np.rint(np.rint(images / step) * step).astype(np.uint8)
        return levels


@dataclass(frozen=True, slots=True)
class Blur(Defence):
    """Blurs each image by a Gaussian, a tenth as wide as the image and at least 3 pixels.

    Args:
        sigma: Standard deviation in pixels, above 0.

    Raises:
        ValueError: The standard deviation is not above 0.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        above(0, sigma=self.sigma)

    def change(self, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> Change:
        """Return the blur."""
        return self._blurred

    def _blurred(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        clips = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))[:, :, None]
        blurred = blur(clips, np.full(len(images), self.sigma))[:, :, 0]
        return np.ascontiguousarray(blurred.round_().permute(0, 2, 3, 1).numpy().astype(np.uint8))
