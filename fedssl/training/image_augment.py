"""Augmentation of image batches, on the device that trains: views of every role from one configuration."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedssl.checks import at_least
from fedssl.objectives.objective import Role
from fedssl.training.augment import MAX_BYTE, resize
from fedssl.training.image_view import ImageView, ViewParameters
from fedssl.training.rand_augment import render_strong
from fedssl.training.strong_view import StrongView
from fedssl.training.style import BatchStyle
from fedssl.training.transforms import blur, crop, recolour, solarise

_LOCAL = ImageView(crop_scale=(0.05, 0.4))
_LIGHT = ImageView(jitter=0.0, grey=0.0)
_STRONG = StrongView()
_OWN = ImageView.num_uniforms
_STYLED = _OWN + BatchStyle.num_uniforms


@dataclass(frozen=True, slots=True)
class ImageAugmentation:
    """Views of images, or of clips whose frames all get the same, as objectives ask for them.

    Args:
        height: Height and width of every view but the local ones, in pixels.
        width: The same: views are square.
        local_size: Height and width of local views, in pixels.
        full: What "full" views are drawn by.
        second: What every other one of them, from the second on, is drawn by instead; None: all are alike.
        local: What "local" views are drawn by.
        light: What "light" views are drawn by: crop and flip alone.
        strong: What "strong" views are drawn by: RandAugment and cutout.
        style: Gives all images of a full or local view one style; None leaves each its own. It makes an example's view
            depend on another example, which privacy of single examples rules out.

    Raises:
        ValueError: If an argument is out of range.
    """

    height: int
    width: int
    local_size: int
    full: ImageView
    second: ImageView | None = None
    local: ImageView = _LOCAL
    light: ImageView = _LIGHT
    strong: StrongView = _STRONG
    style: BatchStyle | None = None

    def __post_init__(self) -> None:
        at_least(1, height=self.height, local_size=self.local_size)
        if self.width != self.height:
            raise ValueError(f"width must be {self.height} as the height, since views are square, got {self.width}")

    @property
    def num_uniforms(self) -> int:
        """Random numbers that a view takes for each example: as many as the role that takes the most."""
        return max(_STYLED, self.strong.num_uniforms)

    def __call__(self, clips: Tensor, uniforms: NDArray[np.float64], role: Role, ordinal: int) -> Tensor:
        """Return one view of each clip, see `Augmentation`; a "clean" one is only resized.

        Raises:
            ValueError: If the clips have other than 1 or 3 channels, or are too small to be cut.
        """
        if clips.shape[1] not in (1, 3):
            raise ValueError(f"clips must have 1 or 3 channels, got {clips.shape[1]}")
        if role == "clean":
            return resize(clips, self.height, self.width)
        height, width = clips.shape[-2:]
        if role == "strong":
            numbers = uniforms[:, : self.strong.num_uniforms]
            return render_strong(clips, self.strong.draw(numbers, height, width, self.height), self.height)
        full = self.second if self.second is not None and ordinal % 2 else self.full
        view = {"full": full, "local": self.local, "light": self.light}[role]
        size = self.local_size if role == "local" else self.height
        views = render(clips, view.draw(uniforms[:, :_OWN], height, width, size), size, view)
        if self.style is None or role == "light":
            return views
        return self.style(views, uniforms[:, _OWN:_STYLED])


def render(clips: Tensor, drawn: ViewParameters, size: int, view: ImageView) -> Tensor:
    """Return the clips `[n, channels, frames, size, size]` in [0, 1] as they were drawn from `view`."""
    views = crop(clips.float().div_(MAX_BYTE), drawn.boxes, size, mirrored=view.shift > 0)
    if drawn.colours is not None:
        views = recolour(views, drawn.colours)
    views.clamp_(0, 1)
    if drawn.sigmas.any():
        chosen = torch.from_numpy(np.flatnonzero(drawn.sigmas)).to(views.device)
        views[chosen] = blur(views[chosen], drawn.sigmas[drawn.sigmas > 0]).clamp_(0, 1)
    if drawn.solarised.any():
        chosen = torch.from_numpy(np.flatnonzero(drawn.solarised)).to(views.device)
        views[chosen] = solarise(views[chosen], view.solarise_threshold)
    return views
