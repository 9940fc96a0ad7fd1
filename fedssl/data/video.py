"""Video files as arrays: any format and size, turned as the camera was held, up to where a file breaks off."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.listing import Kind
from fedssl.data.split import check_channels
from fedssl.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

LOGGER = logging.getLogger("fedssl")

VIDEOS = Kind(
    "videos",
    (
        *(".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
        *(".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ),
)

MAX_BYTES = 2**31
"""The frames of one video, resized, may take this much memory."""

MAX_PIXELS = 2**26
"""A frame in the file may have this many pixels, 8192 by 8192: a broken header can claim anything."""


@dataclass(frozen=True, slots=True)
class VideoDecoder:
    """Reads the frames of a video file, resized.

    Frames are those of the file in the order they are shown, whatever the time between them.

    Attributes:
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        channels: 3 for RGB, 1 for grey.
        max_frames: Stop after this many frames; 0 for all.

    Raises:
        ValueError: An argument is out of range.
    """

    height: int
    width: int
    channels: int
    max_frames: int = 0

    def __post_init__(self) -> None:
        at_least(1, height=self.height, width=self.width)
        at_least(0, max_frames=self.max_frames)
        check_channels(self.channels)

    @property
    def settings(self) -> str:
        """What the frames depend on beside the file; another release of the decoder may round otherwise."""
        return f"{self.height}x{self.width}x{self.channels} of {self.max_frames or 'all'}, av {_release()}"

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Return `[frames, height, width, channels]` uint8; of a file that breaks off, the frames before the break.

        Raises:
            DataError: The file cannot be decoded, has no frames, or more than fit into `MAX_BYTES`.
        """
        import av

        frames: list[NDArray[np.uint8]] = []
        most = self.max_frames or MAX_BYTES // (self.height * self.width * self.channels)
        try:
            for frame in self._frames(path):
                frames.append(frame)
                if len(frames) == most:
                    break
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if not frames:
                raise DataError(f"{path}: cannot be read as a video ({reason})") from error
            LOGGER.warning("%s: breaks off after %d frames (%s)", path, len(frames), reason)
        if not frames:
            raise DataError(f"{path}: has no video frames")
        if len(frames) == most and not self.max_frames:
            raise DataError(f"{path}: has {most} frames or more, which is too long; use data.max_frames or cut it")
        return np.stack(frames)

    def _frames(self, path: Path) -> Iterator[NDArray[np.uint8]]:
        import av
        from av.video.reformatter import VideoReformatter

        reformatter = VideoReformatter()
        # the prefix keeps FFmpeg from taking a name with a colon for a protocol, and files from naming others
        options = {"protocol_whitelist": "file"}
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
            for frame in _decoded(container):
                transposed, flips = _turn(frame)
                size = (self.height, self.width) if transposed else (self.width, self.height)
                colour = "rgb24" if self.channels == 3 else "gray"
                scaled = reformatter.reformat(frame, *size, format=colour, threads=1)
                pixels = scaled.to_ndarray().astype(np.uint8, copy=False).reshape(size[1], size[0], self.channels)
                yield (pixels.swapaxes(0, 1) if transposed else pixels)[flips]


@cache
def _release() -> str:
    return version("av")


def _decoded(container: "InputContainer") -> "Iterator[VideoFrame]":
    """Yield the frames of the main video stream; where decoding fails, those that are held back come first."""
    import av
    from av.video.stream import VideoStream

    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        raise ValueError("it has no video stream of a known codec")
    context = stream.codec_context
    context.thread_count = 1  # workers decode beside each other
    context.options = {"max_pixels": str(MAX_PIXELS)}
    try:
        for packet in container.demux(stream):
            yield from packet.decode()
    except av.FFmpegError:
        if context.is_open:
            yield from context.decode(None)
        raise


def _turn(frame: "VideoFrame") -> tuple[bool, tuple[slice, slice]]:
    """Return whether rows and columns change places, and how both are then read, by the frame's display matrix.

    A matrix `(a, b, _, c, d, ...)` shows the pixel at `(x, y)` at `(a x + c y, b x + d y)`; angles between quarter
    turns go to the nearest one.
    """
    from av.sidedata.sidedata import SideData

    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return False, (slice(None), slice(None))
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if transposed else (a, d)
    return transposed, (slice(None, None, -1 if down < 0 else 1), slice(None, None, -1 if across < 0 else 1))
