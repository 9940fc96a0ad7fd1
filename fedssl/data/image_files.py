"""Images as arrays: files, encoded bytes and pixels, brought to one size and number of channels."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedssl.data.listing import Kind
from fedssl.errors import DataError

IMAGES = Kind("images", (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))

Size = tuple[int, int]
"""Height and width in pixels."""


def decode(source: Path | BinaryIO, name: str, channels: int, size: Size | None) -> NDArray[np.uint8]:
    """Return an image of any format that Pillow reads, turned as its camera says; transparency is left out.

    Args:
        source: A file, or its bytes.
        name: What an error calls it.
        channels: 3 for RGB, 1 for grey.
        size: The image is resized to it, each new pixel a mean of the old ones; None keeps its own.

    Returns:
        `[height, width, channels]` uint8.

    Raises:
        DataError: It cannot be decoded, or has more than 8 bits a channel.
    """
    try:
        with Image.open(source) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a channel")
            ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image, channels, size)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: cannot be read as an image ({reason})") from error


def convert(images: NDArray[np.uint8], channels: int, size: Size | None) -> NDArray[np.uint8]:
    """Return images with another number of channels and another size; the array itself if it has them already.

    Args:
        images: `[num_images, height, width, 1 or 3]` uint8.
        channels: 3 for RGB, 1 for grey; grey becomes RGB by repetition, RGB grey by its luma (ITU-R BT.601).
        size: The images are resized to it, each new pixel a mean of the old ones; None keeps theirs.

    Returns:
        `[num_images, height, width, channels]` uint8.
    """
    height, width = size or images.shape[1:3]
    if images.shape[1:] == (height, width, channels) or not len(images):
        return images
    pictures = (Image.fromarray(image[..., 0] if images.shape[-1] == 1 else image) for image in images)
    return np.stack([_pixels(picture, channels, size) for picture in pictures])


def _pixels(image: Image.Image, channels: int, size: Size | None) -> NDArray[np.uint8]:
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and size != (image.height, image.width):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(image).reshape(image.height, image.width, channels)
