"""What a strong view does to pixels: RandAugment (Cubuk 2020) and cutout, batched, each image by its own parameters.

As in `transforms`, no batch and no number of threads changes a bit of an image. Autocontrast, equalisation and
posterisation are those of 8-bit images, and a clip's are of all its frames.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedssl.training.augment import MAX_BYTE
from fedssl.training.strong_view import Operation, StrongParameters
from fedssl.training.transforms import recolour, solarise, warp

_GREY = 0.5
_FACTORS = (Operation.BRIGHTNESS, Operation.CONTRAST, Operation.COLOUR)  # as `recolour` has them


def render_strong(clips: Tensor, drawn: StrongParameters, size: int) -> Tensor:
    """Return strong views of clips.

    All moves are made at once and before all colours, so that an image is interpolated once. What they bring in from
    outside is grey, as the square that is cut out.

    Args:
        clips: `[n, channels, frames, height, width]` uint8 of 1 channel, which has no colour to change, or 3.
        drawn: What was drawn for them.
        size: Height and width of the views in pixels.

    Returns:
        `[n, channels, frames, size, size]` float32 in [0, 1].
    """
    views, outside = warp(clips.float().div_(MAX_BYTE), drawn.boxes, drawn.maps, size)
    for kinds, amounts in zip(drawn.operations, drawn.amounts, strict=True):
        chosen = np.flatnonzero(np.isin(kinds, _FACTORS))
        if len(chosen):
            factors = np.tile((1.0, 1.0, 1.0, 0.0), (len(chosen), 1))
            factors[np.arange(len(chosen)), kinds[chosen] - _FACTORS[0]] = amounts[chosen]
            places = torch.from_numpy(chosen).to(views.device)
            views.index_copy_(0, places, recolour(views.index_select(0, places), factors))
        for kind, change in _CHANGES.items():
            chosen = np.flatnonzero(kinds == kind)
            if len(chosen):
                places = torch.from_numpy(chosen).to(views.device)
                amount = torch.from_numpy(amounts[chosen].astype(np.float32)).to(views.device).view(-1, 1, 1, 1, 1)
                views.index_copy_(0, places, change(views.index_select(0, places), amount))
    emptied = outside | _inside(drawn.holes, size, views.device)
    return views.clamp_(0, 1).masked_fill_(emptied[:, None, None], _GREY)


def autocontrast(clips: Tensor, share: Tensor) -> Tensor:
    """Return clips whose every channel reaches from 0 to 1; one of a single grey level stays.

    Args:
        clips: `[n, channels, frames, height, width]` float32 in [0, 1].
        share: `[n, 1, 1, 1, 1]` of the stretched clip in the result; the rest is the clip.
    """
    least, greatest = clips.amin((2, 3, 4), keepdim=True), clips.amax((2, 3, 4), keepdim=True)
    # interpolation leaves a trace of rounding in a channel of one level
    flat = greatest - least < 0.5 / MAX_BYTE
    stretched = (clips - least.masked_fill(flat, 0)) / (greatest - least).masked_fill(flat, 1)
    return stretched * share + clips * (1 - share)


def equalise(clips: Tensor, share: Tensor) -> Tensor:
    """Return clips in whose every channel all grey levels are about as frequent.

    As in Pillow a new level stands for a whole number of pixels, so that small clips are equalised coarsely; where it
    would stand for none, nothing changes.

    Args:
        clips: `[n, channels, frames, height, width]` float32 in [0, 1].
        share: `[n, 1, 1, 1, 1]` of the equalised clip in the result; the rest is the clip.
    """
    levels = _levels(clips).long().flatten(2)
    counts = levels.new_zeros(*levels.shape[:2], 256)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp_(max=255), torch.arange(256, device=clips.device))
    equalised = table.to(clips.dtype).div_(MAX_BYTE).gather(2, levels).view_as(clips)
    return equalised * share + clips * (1 - share)


def posterise(clips: Tensor, bits: Tensor) -> Tensor:
    """Return clips with the highest `bits` `[n, 1, 1, 1, 1]` of the eight of each pixel."""
    width = 1 << (8 - bits).int()  # a power need not be exact
    return (_levels(clips) / width).floor_() * width / MAX_BYTE


def sharpen(clips: Tensor, factors: Tensor) -> Tensor:
    """Return clips whose distances from a smoothed clip are multiplied by `factors` `[n, 1, 1, 1, 1]`.

    Smoothing is Pillow's: a pixel counts five times, each of the eight around it once; the outermost pixels stay.
    """
    centre = clips[..., 1:-1, 1:-1]
    rows = clips[..., :-2, :] + clips[..., 1:-1, :] + clips[..., 2:, :]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + centre * 4) / 13
    result = clips.clone()
    result[..., 1:-1, 1:-1] = centre * factors + smooth * (1 - factors)
    return result


_CHANGES = {
    Operation.AUTOCONTRAST: autocontrast,
    Operation.EQUALISE: equalise,
    Operation.SHARPNESS: sharpen,
    Operation.POSTERISE: posterise,
    Operation.SOLARISE: solarise,
}


def _levels(clips: Tensor) -> Tensor:
    return (clips * MAX_BYTE).round_()


def _inside(holes: NDArray[np.int64], size: int, device: torch.device) -> Tensor:
    """Return which pixels `[n, size, size]` lie in the holes."""
    left, right, top, bottom = torch.from_numpy(holes).to(device).view(-1, 4, 1).unbind(1)
    places = torch.arange(size, device=device)
    across, down = (places >= left) & (places < right), (places >= top) & (places < bottom)
    return across.unsqueeze(1) & down.unsqueeze(2)
