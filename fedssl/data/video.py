"""Video files as arrays."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.errors import DataError


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


@dataclass(slots=True)
class VideoDataset:
    """Video files that are decoded when first read and then kept in memory; implements `Dataset`.

    Attributes:
        paths: `[num_examples]` files.
        labels: `[num_examples]` int64, indices into `classes`.
        classes: Class names.
        owners: `[num_examples]` owner names; "" where there is none.
        height: Height in pixels.
        width: Width in pixels.
        channels: 3 for RGB, 1 for grey.
        max_frames: Frames kept of each file; 0 for all.
        clips: The decoded examples by index.
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    owners: tuple[str, ...]
    height: int
    width: int
    channels: int
    max_frames: int
    clips: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.paths)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return video `index` as `[frames, height, width, channels]` uint8, a read-only array.

        Raises:
            DataError: The file cannot be decoded or has no frames.
            IndexError: There is no such video.
        """
        if index not in self.clips:
            clip = decode(self.paths[index], self.height, self.width, self.channels, self.max_frames)
            clip.setflags(write=False)
            self.clips[index] = clip
        return self.clips[index]
