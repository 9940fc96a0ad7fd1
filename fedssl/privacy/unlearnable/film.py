"""What a video file says of itself, and its lossless copy (FFV1 in Matroska, RFC 9043)."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.data.image_files import Size
from fedssl.errors import DataError

_ARRAY = {1: "gray", 3: "rgb24"}
_STORED = {1: "gray", 3: "bgr0"}  # what FFV1 keeps without any conversion of colours
_RATE = Fraction(25)


@dataclass(frozen=True, slots=True)
class Film:
    """What is known of a video before it is read.

    Attributes:
        size: Height and width as it is shown.
        grey: Whether it has no colour.
        rate: Frames per second, 25 where the file does not say.
    """

    size: Size
    grey: bool
    rate: Fraction


def film(path: Path) -> Film:
    """Return what a video file says of itself.

    Raises:
        DataError: It cannot be read as a video.
    """
    import av

    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            frame = next(container.decode(stream))
            turned = round(frame.rotation / 90) % 2 == 1
            size = (frame.width, frame.height) if turned else (frame.height, frame.width)
            rate = Fraction(stream.average_rate or stream.guessed_rate or _RATE)
            return Film(size, frame.format.name.startswith("gray"), rate)
    except (av.FFmpegError, OSError, ValueError, AttributeError, StopIteration) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as a video ({reason})") from error


def write_film(path: Path, frames: NDArray[np.uint8], rate: Fraction) -> None:
    """Write a video that is read back bit by bit as it is.

    Args:
        path: The file.
        frames: `[frames, height, width, 1 or 3]`.
        rate: Frames per second.
    """
    import av

    _, height, width, channels = frames.shape
    with av.open(f"file:{path}", "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, _STORED[channels]
        for frame in frames:
            pixels = frame[..., 0] if channels == 1 else frame
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=_ARRAY[channels])
            container.mux(stream.encode(shown))
        container.mux(stream.encode())
