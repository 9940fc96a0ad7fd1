"""Noise as a file: patterns in 8-bit levels, which example gets which, and how they are added within the budget."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

LEVELS = 255


@dataclass(frozen=True, slots=True)
class Noise:
    """Patterns, and the examples that they belong to.

    Attributes:
        patterns: `[num_patterns, height, width, channels]` int16, in levels of 255, none beyond `budget`.
        rows: `[num_examples]` int64, the pattern of each example.
        budget: Largest change of a pixel, in levels of 255.

    Raises:
        ValueError: A pattern exceeds the budget, or a row has no pattern.
    """

    patterns: NDArray[np.int16]
    rows: NDArray[np.int64]
    budget: int

    def __post_init__(self) -> None:
        largest = int(np.abs(self.patterns).max(initial=0))
        if largest > self.budget:
            raise ValueError(f"patterns must change no pixel by more than the budget of {self.budget}, got {largest}")
        if len(self.rows) and not 0 <= self.rows.min() <= self.rows.max() < len(self.patterns):
            raise ValueError(f"rows must be below the {len(self.patterns)} patterns, got {self.rows.max()}")

    def apply(self, images: NDArray[np.uint8], example: int) -> NDArray[np.uint8]:
        """Return an example with its pattern added; all frames of a video get the same.

        Args:
            images: `[frames, height, width, channels]` uint8; a pattern of another size is resized to it.
            example: Its place in `rows`.
        """
        pattern = _resized(self.patterns[self.rows[example]], images.shape[1:3])
        changed: NDArray[np.uint8] = np.clip(images.astype(np.int16) + pattern, 0, LEVELS).astype(np.uint8)
        return changed


def _resized(pattern: NDArray[np.int16], size: tuple[int, ...]) -> NDArray[np.int16]:
    """Return a pattern in another size; no value of it becomes larger than the largest was."""
    if pattern.shape[:2] == size:
        return pattern
    values = torch.from_numpy(pattern.astype(np.float32)).permute(2, 0, 1)[None]
    resized = F.interpolate(values, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    levels: NDArray[np.int16] = np.rint(resized.numpy()).astype(np.int16)
    return levels


def levels(noise: torch.Tensor, budget: int) -> NDArray[np.int16]:
    """Return noise in whole levels within the budget.

    Args:
        noise: `[num_patterns, channels, height, width]` float, in units of a pixel's range 0 to 1.
        budget: Largest change of a pixel, in levels of 255.

    Returns:
        `[num_patterns, height, width, channels]` int16.
    """
    rounded = (noise.detach().cpu() * LEVELS).round().clamp(-budget, budget)
    found: NDArray[np.int16] = rounded.permute(0, 2, 3, 1).contiguous().numpy().astype(np.int16)
    return found


def write_noise(path: Path, noise: Noise) -> None:
    """Write noise to an .npz file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, patterns=noise.patterns, rows=noise.rows, budget=np.int64(noise.budget))
    partial.replace(path)


def read_noise(path: Path) -> Noise:
    """Return the noise of a file.

    Raises:
        OSError: There is no such file.
        ValueError: It is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return Noise(file["patterns"], file["rows"], int(file["budget"]))
    except (KeyError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: is no file of noise ({error})") from error
