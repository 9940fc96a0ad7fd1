"""Which frames of a video a clip shows: every `stride`-th from a start; past the end the last frame is repeated."""

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least

Frames = NDArray[np.int64]


def span(length: int, stride: int) -> int:
    """Return how many frames of a video a clip of `length` frames reaches over."""
    return 1 + (length - 1) * stride


def from_starts(starts: Frames, num_frames: int, length: int, stride: int = 1) -> Frames:
    """Return the frames `[clips, length]` of clips that begin at `starts`.

    Args:
        starts: `[clips]` first frames.
        num_frames: Frames of the video.
        length: Frames of a clip.
        stride: Frames from one to the next.

    Raises:
        ValueError: A number is below 1.
    """
    at_least(1, num_frames=num_frames, length=length, stride=stride)
    return np.asarray(np.minimum(starts[:, None] + stride * np.arange(length), num_frames - 1), dtype=np.int64)


def uniform(num_frames: int, num_clips: int, length: int, stride: int = 1) -> Frames:
    """Return evenly spread clips, the first at the start and the last at the end (Xu 2019), `[num_clips, length]`.

    Raises:
        ValueError: A number is below 1.
    """
    at_least(1, num_clips=num_clips)
    half = span(length, stride) / 2
    centres = np.linspace(half, max(num_frames, 2 * half) - half, num_clips)
    return from_starts((centres - half).astype(np.int64), num_frames, length, stride)


def random(num_frames: int, length: int, stride: int, uniforms: NDArray[np.float64]) -> Frames:
    """Return clips that begin anywhere they fit, `[clips, length]`; at 0 where the video is shorter than a clip.

    Args:
        num_frames: Frames of the video.
        length: Frames of a clip.
        stride: Frames from one to the next.
        uniforms: `[clips]` in [0, 1), for the starts.

    Raises:
        ValueError: A number is below 1.
    """
    places = max(num_frames - span(length, stride), 0) + 1
    return from_starts((uniforms * places).astype(np.int64), num_frames, length, stride)


def dense(num_frames: int, length: int, stride: int = 1, step: int = 1) -> Frames:
    """Return a clip from every `step`-th frame on at which one fits, and at least one, `[clips, length]`.

    Raises:
        ValueError: A number is below 1.
    """
    at_least(1, step=step)
    places = max(num_frames - span(length, stride), 0) + 1
    return from_starts(np.arange(0, places, step), num_frames, length, stride)
