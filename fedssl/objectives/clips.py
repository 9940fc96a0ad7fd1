"""Which frames of a video the clips of a pretext show: those of a short one have smaller strides, not still frames."""

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.clips import random


def widest_stride(num_frames: int, clip_frames: int, most: int) -> int:
    """Return the greatest stride, at most `most`, with which a clip of `clip_frames` fits into a video.

    Raises:
        ValueError: The video is shorter than one clip.
    """
    at_least(clip_frames, num_frames=num_frames)
    return most if clip_frames == 1 else min(most, (num_frames - 1) // (clip_frames - 1))


def strided(num_frames: int, clip_frames: int, stride: int, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return clips that begin anywhere in a video, `[clips, clip_frames]`.

    Args:
        num_frames: Frames of the video.
        clip_frames: Frames of a clip.
        stride: Frames from one to the next; where the video is too short for it, the greatest that fits.
        uniforms: `[clips]` in [0, 1), for the starts.

    Raises:
        ValueError: The video is shorter than one clip.
    """
    return random(num_frames, clip_frames, widest_stride(num_frames, clip_frames, stride), uniforms)
