"""Patches of a clip that move over it along known ways (Wang 2021).

"Unsupervised Visual Representation Learning by Tracking Patches in Video".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedssl.checks import at_least

_SIDE = 112  # pixels of the published clips; the numbers in pixels are theirs
_SCALES = (16.0, 24.0, 28.0, 32.0, 48.0, 64.0)  # root of the area in pixels
_ASPECTS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
_JITTER = 0.18  # of the logarithms of width and height
_SPEED, _GROWTH = 3.0, 0.025  # pixels a frame, and of the logarithms of width and height
_SEGMENTS = 3
_WITHOUT_KEYS = (0.5, 0.8)  # probabilities of no inner key frame, and of at most one
_LINEAR, _ACCELERATING = 0.7, 0.85  # the latter includes the former
_RECTANGLES, _ELLIPSES = 0.5, 0.85  # as well
_SOFT = 0.5
_SHARP_EDGE = 1e-6  # narrower than any pixel
_LEAST_ALPHA = 0.8
_SHOWN = 0.8
_WAY = [2, 2, 2, 3, _SEGMENTS, 4 * _SEGMENTS]  # random numbers of a patch's boxes
_LOOK = 5  # and of what it looks like, beside one a frame


def unit(height: int, width: int) -> float:
    """Return what stands for a pixel of the published clips, of 112, in clips of another size, in their pixels."""
    return min(height, width) / _SIDE


@dataclass(frozen=True, slots=True)
class MovingPatches:
    """Cuts patches out of a clip and pastes them, resized, along random ways into all of its frames.

    Sizes and speeds are the published ones for 112 pixels and shrink with the clip. Boxes are not rounded to whole
    pixels, which in a small clip are wider than a frame's way: patches are pasted by linear interpolation.

    Args:
        num_patches: Patches of a clip.
        clip_frames: Frames of a clip.

    Raises:
        ValueError: An argument is out of range.
    """

    num_patches: int
    clip_frames: int

    def __post_init__(self) -> None:
        at_least(1, num_patches=self.num_patches)
        at_least(2, clip_frames=self.clip_frames)

    @property
    def num_uniforms(self) -> int:
        """Random numbers of a clip."""
        return self.num_patches * (sum(_WAY) + _LOOK + self.clip_frames)

    def boxes(self, uniforms: Tensor, height: int, width: int) -> Tensor:
        """Return where the patches are, the largest first, which is pasted first.

        Between two key frames a centre moves in a straight line by at most 3 pixels of 112 a frame, and width and
        height change by at most a factor of exp(0.025); a clip has up to two inner key frames, at any time.

        Args:
            uniforms: `[batch, num_uniforms]` float64 in [0, 1).
            height: Height of the clips in pixels, at least 2.
            width: Width of the clips in pixels, at least 2.

        Returns:
            `[batch, num_patches, clip_frames, 4]` float64: left, top, right, bottom, in pixels.
        """
        own = uniforms.unflatten(1, (self.num_patches, -1))[..., : sum(_WAY)]
        kind, jitter, place, keys, ease, moves = own.split(_WAY, dim=2)
        limits = own.new_tensor([width, height])
        scale, aspect = _chosen(_SCALES, kind[..., :1]) * unit(height, width), _chosen(_ASPECTS, kind[..., 1:]).sqrt()
        sizes = torch.cat((scale * aspect, scale / aspect), dim=2) * (_JITTER * _signed(jitter)).exp()
        sizes = torch.minimum(sizes.clamp_min(1), limits - 1)
        lengths, done = self._segments(keys, ease)
        moves = _signed(moves).unflatten(2, (_SEGMENTS, 4)) * lengths[..., None]
        stops = [sizes / 2 + place * (limits - sizes)]
        for segment in range(_SEGMENTS):
            stop = stops[-1] + _SPEED * unit(height, width) * moves[:, :, segment, :2]
            stops.append(torch.maximum(torch.minimum(stop, limits - sizes / 2), sizes / 2))
        centres = stops[0][:, :, None] + done.mT @ torch.stack(stops, dim=2).diff(dim=2)
        halves = sizes[:, :, None] / 2 * (_GROWTH * done.mT @ moves[..., 2:]).exp()
        corners = torch.cat((centres - halves, centres + halves), dim=3)
        inside = torch.minimum(corners.clamp_min(0), limits.repeat(2))
        areas = (inside[..., 2:] - inside[..., :2]).prod(dim=3).mean(dim=2)
        order = areas.argsort(dim=1, descending=True, stable=True)
        return inside.gather(1, order[..., None, None].expand_as(inside))

    def _segments(self, keys: Tensor, ease: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames of each segment `[batch, patches, 3]`, and which share of it is done `[..., 3, frames]`."""
        last = float(self.clip_frames - 1)
        inner = (keys[..., :1] >= keys.new_tensor(_WITHOUT_KEYS)).sum(dim=2, keepdim=True)
        used = torch.arange(2, device=keys.device) < inner
        times = torch.where(used, keys[..., 1:], 1.0).sort(dim=2).values * last
        ends = torch.cat((times, torch.full_like(times[..., :1], last)), dim=2)
        starts = torch.cat((torch.zeros_like(times[..., :1]), times), dim=2)
        frames = torch.arange(self.clip_frames, device=keys.device, dtype=keys.dtype)
        tiny = torch.finfo(keys.dtype).tiny
        part = ((frames - starts[..., None]) / (ends - starts)[..., None].clamp_min(tiny)).clamp(0, 1)
        curved = torch.where(ease[..., None] < _ACCELERATING, part.square(), 1 - (1 - part).square())
        return ends - starts, torch.where(ease[..., None] < _LINEAR, part, curved)

    def paste(self, clips: Tensor, boxes: Tensor, uniforms: Tensor) -> Tensor:
        """Return the clips with their patches.

        A patch is what its box holds in one frame of the clip, the same in all frames: a rectangle, an ellipse or a
        rhombus, with a soft edge at times, not quite opaque. It is hidden in a fifth of the frames, but not in the
        first and in the one that it is of.

        Args:
            clips: `[batch, channels, clip_frames, height, width]`.
            boxes: Of `boxes`.
            uniforms: The same numbers.
        """
        own = uniforms.unflatten(1, (self.num_patches, -1))[..., sum(_WAY) :]
        frames = torch.arange(self.clip_frames, device=clips.device)
        pasted = clips
        for patch in range(self.num_patches):
            look, hidden = own[:, patch].split([_LOOK, self.clip_frames], dim=1)
            source, alpha, shape, softness, edge = look.split(1, dim=1)
            source = (source * self.clip_frames).long()
            shown = (hidden < _SHOWN) | (frames == 0) | (frames == source)
            box = boxes[:, patch]
            origin = box.gather(1, source[..., None].expand(-1, -1, 4))
            content = clips.gather(2, source[:, :, None, None, None].expand_as(clips[:, :, :1])).squeeze(2)
            (across, x), (down, y) = (
                (made.to(clips.dtype) for made in _axis(box[..., axis::2], origin[..., axis::2], clips.shape[4 - axis]))
                for axis in (0, 1)
            )
            edge = torch.where(softness < _SOFT, 0.2 - 0.15 * edge, _SHARP_EDGE)
            alpha = (_LEAST_ALPHA + (1 - _LEAST_ALPHA) * alpha) * shown
            shape, edge, alpha = (numbers[..., None, None].to(clips.dtype) for numbers in (shape, edge, alpha))
            opacity = ((0.5 - _distance(x[:, :, None, :], y[..., None], shape)) / edge).clamp(0, 1) * alpha
            moved = (down[:, None] @ content[:, :, None]) @ across[:, None].mT
            pasted = torch.lerp(pasted, moved, opacity[:, None])
        return pasted


def interpolation(points: Tensor, size: int) -> Tensor:
    """Return the weights by which values at 0, 1, ..., `size` - 1 give the value at each point.

    A product with weights has a deterministic gradient on any device, unlike an interpolation by indices.

    Args:
        points: `[...]`; those outside take the nearest value.
        size: Number of values.

    Returns:
        `[..., size]`, each row of sum 1.
    """
    places = torch.arange(size, device=points.device, dtype=points.dtype)
    return (1 - (points.clamp(0, size - 1)[..., None] - places).abs()).clamp_min(0)


def _axis(box: Tensor, origin: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return, for each pixel of one direction, which pixels of the source it shows, and how far off the middle it is.

    Args:
        box: `[batch, frames, 2]` begin and end.
        origin: `[batch, 1, 2]` the same in the source.
        size: Pixels of the direction.

    Returns:
        Weights `[batch, frames, size, size]` and distances `[batch, frames, size]`, 0.5 at the box's edge.
    """
    pixels = torch.arange(size, device=box.device, dtype=box.dtype) + 0.5 - box[..., :1]
    extent = box[..., 1:] - box[..., :1]
    points = pixels * ((origin[..., 1:] - origin[..., :1]) / extent) + (origin[..., :1] - 0.5)
    return interpolation(points, size), (pixels / extent - 0.5).abs()


def _distance(x: Tensor, y: Tensor, shape: Tensor) -> Tensor:
    """Return the distance from the middle by which a shape is the set of less than 0.5."""
    curved = torch.where(shape < _ELLIPSES, (x.square() + y.square()).sqrt(), x + y)
    return torch.where(shape < _RECTANGLES, torch.maximum(x, y), curved)


def _chosen(values: tuple[float, ...], uniforms: Tensor) -> Tensor:
    return uniforms.new_tensor(values)[(uniforms * len(values)).long()]


def _signed(uniforms: Tensor) -> Tensor:
    return 2 * uniforms - 1
