"""CtP: catch the patches that move through a clip (Wang 2021).

"Unsupervised Visual Representation Learning by Tracking Patches in Video".
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.objectives.clips import strided, widest_stride
from fedssl.objectives.moving_patches import MovingPatches, interpolation, unit
from fedssl.objectives.objective import Batch, Draw, Objective, Population, Step
from fedssl.privacy.contract import PrivacyContract

_SHIFT, _GROWTH = 0.8, 0.04  # by which targets are divided: pixels of 112, and logarithms of width and height
_CELLS, _SAMPLES = 5, 2  # rows and columns of a region, and points of each in a direction
_OWN = 2  # random numbers that choose frames


class Ctp(Objective):
    """Tell from where patches begin where they are in every frame; the loss is smooth L1 in both centre and size.

    As published but for this: the paper's encoder keeps the height and width of its third stage in its fourth, here
    the feature map has the stride that it has; brightness and the like are the augmentation's and come first; a patch
    is equally opaque in all frames; and see `MovingPatches`.

    Args:
        clip_frames: Frames of a clip.
        max_stride: Greatest stride; it is drawn among those from 1 on that fit into the video.
        num_patches: Patches of a clip.
        hidden: Width of the head's layers.
        height: Height of a view in pixels.
        width: Width of a view in pixels.
        channels: Channels of a view.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example")

    def __init__(
        self,
        clip_frames: int = 16,
        max_stride: int = 5,
        num_patches: int = 3,
        hidden: int = 512,
        height: int = 112,
        width: int = 112,
        channels: int = 3,
    ) -> None:
        at_least(1, max_stride=max_stride, hidden=hidden, channels=channels)
        at_least(2, height=height, width=width)
        self.patches = MovingPatches(num_patches, clip_frames)
        self.max_stride = max_stride
        self.hidden = hidden
        self.shape = (channels, clip_frames, height, width)
        self.min_frames = clip_frames
        self.num_uniforms = _OWN + self.patches.num_uniforms

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose a stride and a start; there is no answer, the target is 0.

        Args:
            num_frames: Frames of the video.
            uniforms: `[num_uniforms]` in [0, 1), of which the first two are used.

        Returns:
            Frames `[1, clip_frames]`.

        Raises:
            ValueError: If the video is shorter than one clip.
        """
        stride = 1 + int(uniforms[0] * widest_stride(num_frames, self.min_frames, self.max_stride))
        return Draw(strided(num_frames, self.min_frames, stride, uniforms[1:_OWN]), 0)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the head."""
        feature_dim, map_frames, _, _ = encoder.map_shape(self.shape)
        return {"head": CtpHead(feature_dim, map_frames, self.min_frames, self.hidden)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of one view, with "iou", the mean overlap of predicted boxes with the true ones."""
        clips, own = batch.views[0], batch.uniforms[:, _OWN:]
        height, width = clips.shape[-2:]
        boxes = self.patches.boxes(own, height, width)
        pasted = self.patches.paste(clips, boxes, own)
        maps = cast(Encoder, model["backbone"]).feature_map(pasted)
        first = boxes[:, :, 0]
        predicted: Tensor = model["head"](maps, first / first.new_tensor([width, height, width, height]))
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        pixel = unit(height, width)
        loss = trajectory_loss(predicted, encode(boxes, pixel).to(predicted.dtype))
        overlap = intersection_over_union(decode(predicted.detach(), first, pixel), boxes).mean()
        return Step(loss, {"iou": overlap})


class CtpHead(nn.Module):
    """Maps a feature map and the boxes of the first frame to the encoded boxes of all frames.

    Args:
        feature_dim: Channels of the map.
        map_frames: Frames of the map.
        clip_frames: Frames of the clip.
        hidden: Width of its layers.
    """

    def __init__(self, feature_dim: int, map_frames: int, clip_frames: int, hidden: int) -> None:
        super().__init__()
        self.over_time = nn.Conv3d(feature_dim, hidden, (map_frames, 1, 1))
        self.layers = nn.Sequential(
            nn.Linear(hidden * _CELLS**2, hidden), nn.ReLU(), nn.Linear(hidden, 4 * clip_frames)
        )

    def forward(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """Return `[batch, patches, clip_frames, 4]`.

        Args:
            maps: `[batch, feature_dim, map_frames, height', width']`.
            boxes: `[batch, patches, 4]` left, top, right, bottom, as shares of the clip's width and height.
        """
        regions = region_align(self.over_time(maps).squeeze(2).relu(), boxes)
        encoded: Tensor = self.layers(regions.flatten(2).flatten(0, 1))
        return encoded.view(*boxes.shape[:2], -1, 4)


def region_align(maps: Tensor, boxes: Tensor) -> Tensor:
    """Return what a map has in boxes (RoIAlign of He 2017, "Mask R-CNN"), in 5 by 5 cells of 2 by 2 points each.

    Args:
        maps: `[batch, channels, height', width']`.
        boxes: `[batch, patches, 4]` left, top, right, bottom in [0, 1].

    Returns:
        `[batch, patches, channels, 5, 5]`.
    """
    height, width = maps.shape[-2:]
    places = (torch.arange(_CELLS * _SAMPLES, device=boxes.device, dtype=boxes.dtype) + 0.5) / (_CELLS * _SAMPLES)

    def weights(begin: Tensor, end: Tensor, size: int) -> Tensor:
        points = (begin[..., None] + (end - begin)[..., None] * places) * size - 0.5
        cells: Tensor = interpolation(points, size).unflatten(2, (_CELLS, _SAMPLES)).mean(dim=3)
        return cells.to(maps.dtype)

    left, top, right, bottom = boxes.unbind(dim=2)
    across = weights(left, right, width).mT.unsqueeze(2)
    return weights(top, bottom, height).unsqueeze(2) @ maps.unsqueeze(1) @ across


def encode(boxes: Tensor, pixel: float) -> Tensor:
    """Return the movement of centres and the growth of width and height since the first frame, in their own units.

    Args:
        boxes: `[..., frames, 4]` left, top, right, bottom in pixels.
        pixel: What stands for a pixel of clips of 112, see `unit`.

    Returns:
        `[..., frames, 4]`.
    """
    centres, sizes = (boxes[..., 2:] + boxes[..., :2]) / 2, boxes[..., 2:] - boxes[..., :2]
    shifts = (centres - centres[..., :1, :]) / (_SHIFT * pixel)
    return torch.cat((shifts, (sizes / sizes[..., :1, :]).log() / _GROWTH), dim=-1)


def decode(encoded: Tensor, first: Tensor, pixel: float) -> Tensor:
    """Return the boxes that `encode` gave the movements of.

    Args:
        encoded: `[..., frames, 4]`.
        first: `[..., 4]` boxes in the first frame.
        pixel: As there.
    """
    centres = (first[..., 2:] + first[..., :2])[..., None, :] / 2 + _SHIFT * pixel * encoded[..., :2]
    halves = (first[..., 2:] - first[..., :2])[..., None, :] / 2 * (_GROWTH * encoded[..., 2:]).exp()
    return torch.cat((centres - halves, centres + halves), dim=-1)


def trajectory_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the smooth L1 distance, summed over the four numbers of a box, of which the mean is taken.

    Args:
        predicted: `[..., 4]` encoded boxes.
        target: `[..., 4]`.
    """
    return F.smooth_l1_loss(predicted, target, reduction="none").sum(dim=-1).mean()


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """Return the area that two boxes have in common over that of both, `[...]` of boxes `[..., 4]`."""
    corners = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    common = (corners[1] - corners[0]).clamp_min(0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) for boxes in (first, second)]
    return common / (areas[0] + areas[1] - common)
