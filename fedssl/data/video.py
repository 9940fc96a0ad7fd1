"""Video files as arrays."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.data.listing import Kind
from fedssl.errors import DataError

VIDEOS = Kind(
    "videos",
    (
        *(".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
        *(".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ),
)


def decode(path: Path, height: int, width: int, channels: int, max_frames: int = 0) -> NDArray[np.uint8]:
    """Return the frames of a video file, resized.

    Args:
        path: A file of any format that FFmpeg reads.
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        channels: 3 for RGB, 1 for grey.
        max_frames: Stop after this many frames; 0 for all.

    Returns:
        `[frames, height, width, channels]` uint8.

    Raises:
        DataError: The file cannot be decoded or has no frames.
    """
    import av

    frames: list[NDArray[np.uint8]] = []
    colour = "rgb24" if channels == 3 else "gray"
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                frames.append(frame.reformat(width=width, height=height, format=colour).to_ndarray())
                if len(frames) == max_frames:
                    break
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as a video ({reason})") from error
    if not frames:
        raise DataError(f"{path}: has no video frames")
    return np.stack(frames).reshape(len(frames), height, width, channels)
