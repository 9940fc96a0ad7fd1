"""Batch style standardisation: all images of a view share one image's low frequencies (Scalbert 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchStyle:
    """Draws an image of the batch for each view and gives its style to all: what differs is then not style.

    The draw is that of the batch's first example. It is the one augmentation in which examples depend on each other.

    Args:
        ratio: Least and greatest share of the frequencies, along each side, whose amplitudes are taken over; at 0 it is
            the mean colour alone.

    Raises:
        ValueError: If `ratio` is out of range.
    """

    ratio: Sequence[float] = (0.0, 1.0)
    num_uniforms: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if len(self.ratio) != 2 or not 0 <= self.ratio[0] <= self.ratio[1] <= 1:
            raise ValueError(f"ratio must be two ascending numbers in [0, 1], got {list(self.ratio)}")

    def __call__(self, views: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
        """Return the views in one style, clamped to [0, 1].

        Args:
            views: `[n, channels, frames, height, width]` in [0, 1].
            uniforms: `[n, 2]` in [0, 1).
        """
        least, greatest = self.ratio
        chosen, drawn = uniforms[0]
        half_side = int((least + (greatest - least) * drawn) * min(views.shape[-2:]) / 2)
        return standardise(views, views[int(chosen * len(views)), :, 0], half_side).clamp_(0, 1)


def standardise(views: Tensor, reference: Tensor, half_side: int) -> Tensor:
    """Return views with the low-frequency amplitudes of `reference` and with phases of their own, not clamped.

    Args:
        views: `[n, channels, frames, height, width]`.
        reference: `[channels, height, width]`; every frame of every clip takes its amplitudes.
        half_side: Frequencies of at most this many periods along each side are taken over.
    """
    height, width = views.shape[-2:]
    spectra = torch.fft.rfft2(views)
    amplitudes = torch.fft.rfft2(reference).abs().unsqueeze(1).expand_as(spectra)
    low = torch.fft.fftfreq(height, 1 / height, device=views.device).abs()[:, None] <= half_side
    low = low & (torch.arange(width // 2 + 1, device=views.device) <= half_side)
    styled = torch.where(low, torch.polar(amplitudes, spectra.angle()), spectra)
    images: Tensor = torch.fft.irfft2(styled, s=(height, width))
    return images
