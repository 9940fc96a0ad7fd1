"""Augmentation of whole clips on the device that trains, with parameters drawn beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedssl.checks import at_least, within
from fedssl.objectives.objective import Role

MAX_BYTE = 255.0


class Augmentation(Protocol):
    """Turns examples into views, batched, on the device that trains.

    Attributes:
        num_uniforms: Random numbers that a view takes for each example.
    """

    num_uniforms: int

    def __call__(self, clips: Tensor, uniforms: NDArray[np.float64], role: Role, ordinal: int) -> Tensor:
        """Return one view of each clip.

        Args:
            clips: `[n, channels, frames, height, width]` uint8.
            uniforms: `[n, num_uniforms]` in [0, 1), an example's own for this view.
            role: What the view is for, see `Objective.views`.
            ordinal: How many views of this role the objective has before this one.

        Returns:
            `[n, channels, frames, height', width']` float32 in [0, 1].
        """
        ...


@dataclass(frozen=True, slots=True)
class ClipAugmentation:
    """A random crop, flip, brightness and contrast, each the same in all frames of a clip.

    The parameters of a clip are (side, x, y, flip, brightness, contrast): the crop's side as a share of the image's,
    its centre in [-1, 1], -1 to flip left and right or 1, and two factors. (1, 0, 0, 1, 1, 1) changes nothing.

    Args:
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        crop_scale: Least and greatest share of the image's area that is kept, in (0, 1].
        flip: Probability of flipping left and right; leave it 0 where direction has a meaning.
        brightness: Pixels are multiplied by a factor within 1 plus or minus this.
        contrast: Distances from mid-grey are multiplied by a factor within 1 plus or minus this.

    Raises:
        ValueError: If an argument is out of range.
    """

    height: int
    width: int
    crop_scale: Sequence[float] = (0.5, 1.0)
    flip: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.2
    num_uniforms: ClassVar[int] = 6

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_scale", tuple(float(share) for share in self.crop_scale))
        at_least(1, height=self.height, width=self.width)
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two ascending numbers in (0, 1], got {list(self.crop_scale)}")
        within(0, 1, flip=self.flip, brightness=self.brightness, contrast=self.contrast)

    def parameters(self, uniforms: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the parameters `[n, 6]` of clips from numbers `[n, 6]` in [0, 1)."""
        signed = 2 * uniforms - 1
        least, greatest = self.crop_scale
        side = np.sqrt(least + (greatest - least) * uniforms[:, 0])
        flip = np.where(uniforms[:, 3] < self.flip, -1.0, 1.0)
        brightness, contrast = 1 + self.brightness * signed[:, 4], 1 + self.contrast * signed[:, 5]
        x, y = (1 - side) * signed[:, 1], (1 - side) * signed[:, 2]
        return np.stack([side, x, y, flip, brightness, contrast], axis=1).astype(np.float32)

    def __call__(self, clips: Tensor, uniforms: NDArray[np.float64], role: Role, ordinal: int) -> Tensor:
        """Return one view of each clip; every role but "clean" is the same."""
        if role == "clean":
            return resize(clips, self.height, self.width)
        return self.apply(clips, self.parameters(uniforms))

    def apply(self, clips: Tensor, params: NDArray[np.float32]) -> Tensor:
        """Return the clips, cropped, resized and coloured; a clip's result does not depend on its neighbours.

        Args:
            clips: `[n, channels, frames, height, width]` uint8.
            params: `[n, 6]`, of `parameters`.

        Returns:
            `[n, channels, frames, self.height, self.width]` float32 in [0, 1].

        Raises:
            ValueError: If `params` has another shape.
        """
        if params.shape != (len(clips), 6):
            raise ValueError(f"params must have shape {(len(clips), 6)}, got {params.shape}")
        # copied: a caller may hand over a read-only array
        columns = torch.from_numpy(np.array(params, dtype=np.float32)).to(clips.device)
        grid = _grid(columns, self.height, self.width)
        images = clips.flatten(1, 2).float() / MAX_BYTE
        cropped = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        brightness, contrast = columns[:, 4].view(-1, 1, 1, 1), columns[:, 5].view(-1, 1, 1, 1)
        coloured = ((cropped * brightness - 0.5) * contrast + 0.5).clamp(0, 1)
        return coloured.view(*clips.shape[:3], self.height, self.width)


def resize(clips: Tensor, height: int, width: int) -> Tensor:
    """Return the clips as `ClipAugmentation` gives them when nothing is random.

    Args:
        clips: `[n, channels, frames, height, width]` uint8.
        height: Height of the result in pixels.
        width: Width of the result in pixels.

    Returns:
        `[n, channels, frames, height, width]` float32 in [0, 1].
    """
    images = clips.flatten(1, 2).float() / MAX_BYTE
    resized = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
    return resized.view(*clips.shape[:3], height, width)


def _grid(params: Tensor, height: int, width: int) -> Tensor:
    """Return where each pixel looks, `[n, height, width, 2]` in [-1, 1], elementwise so that no batch changes it."""
    side, x, y, flip = (params[:, column].view(-1, 1) for column in range(4))
    columns = _centres(width, params.device) * (side * flip) + x
    rows = _centres(height, params.device) * side + y
    shape = (len(params), height, width)
    return torch.stack((columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)), dim=-1)


def _centres(size: int, device: torch.device) -> Tensor:
    """Return the centres of `size` pixels laid side by side on [-1, 1]."""
    return (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1
