"""Small video files for tests."""

from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_video(path: Path, brightness: int, frames: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for _ in range(frames):
            image = np.full((16, 32, 3), brightness, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_moving(path: Path, codec: str, frames: int = 12, size: tuple[int, int] = (34, 48), **muxer: str) -> None:
    """Write a video whose left half gets darker and whose right half gets brighter, by 20 a frame."""
    height, width = size
    path.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for number in range(frames):
        image = np.full((height, width, 3), 20 * number, np.uint8)
        image[:, : width // 2] = 255 - 20 * number
        images.append(image)
    if codec == "gif":
        first, *others = (Image.fromarray(image) for image in images)
        first.save(path, save_all=True, append_images=others, duration=100)
        return
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = width, height
        stream.pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "bgr0"}.get(codec, "yuv420p")
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
