"""How a view of an image is drawn: crop, flip, colours, blur, solarisation (SimCLR, Chen 2020; BYOL, Grill 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

_PAIRS = ("crop_scale", "aspect", "blur_sigma")


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """What was drawn for the images of a batch.

    Attributes:
        boxes: `[n, 4]`, see `crop`.
        colours: `[n, 4]`, see `recolour`; None leaves colours as they are.
        sigmas: `[n]` standard deviations of the blur in pixels, 0 where there is none.
        solarised: `[n]` whether an image is solarised.
    """

    boxes: NDArray[np.float64]
    colours: NDArray[np.float64] | None
    sigmas: NDArray[np.float64]
    solarised: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ImageView:
    """How one view is drawn: a box that is resized, a flip, colours, blur and solarisation, in this order.

    The area of a box is uniform and its aspect log-uniform among those that fit into the image; torchvision, which
    draws both until they fit, prefers smaller boxes a little. Boxes begin at whole pixels, of any width. Bilinear
    interpolation does not smooth: images should be at most about twice as large as views.

    Args:
        crop_scale: Least and greatest share of the image's area that is kept, in (0, 1]; None cuts a view of its size
            out of the image, without resizing.
        aspect: Least and greatest width of a box by its height, in pixels.
        shift: Share of the image by which a box may leave it on each side; beyond its edge the image is mirrored.
        flip: Probability of flipping left and right.
        jitter: Probability that the next four are drawn; else they change nothing.
        brightness: Pixels are multiplied by a factor within 1 plus or minus this.
        contrast: Distances from the mean grey are multiplied by a factor within 1 plus or minus this.
        saturation: Distances from a pixel's grey are multiplied by a factor within 1 plus or minus this.
        hue: Greatest turn of the hue to either side; 0.5 is half a turn.
        grey: Probability that colours are taken away.
        blur: Probability of a Gaussian blur.
        blur_sigma: Least and greatest standard deviation of the blur in pixels.
        solarise: Probability that bright pixels are inverted.
        solarise_threshold: Pixels in [0, 1] of at least this are bright.

    Raises:
        ValueError: If an argument is out of range.
    """

    crop_scale: Sequence[float] | None = (0.08, 1.0)
    aspect: Sequence[float] = (3 / 4, 4 / 3)
    shift: float = 0.0
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: Sequence[float] = (0.1, 2.0)
    solarise: float = 0.0
    solarise_threshold: float = 0.5
    num_uniforms: ClassVar[int] = 14

    def __post_init__(self) -> None:
        for name in _PAIRS:
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or not 0 < value[0] <= value[1]):
                raise ValueError(f"{name} must be two ascending numbers above 0, got {list(value)}")
        if self.crop_scale is not None and self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale must be at most 1, got {list(self.crop_scale)}")
        for name in self.__slots__:
            limit = 0.5 if name == "hue" else 1
            if name not in _PAIRS and not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be in [0, {limit}], got {getattr(self, name)}")

    def draw(self, uniforms: NDArray[np.float64], height: int, width: int, size: int) -> ViewParameters:
        """Return the parameters of images.

        Args:
            uniforms: `[n, 14]` in [0, 1).
            height: Height of the images in pixels.
            width: Width of the images in pixels.
            size: Height and width of the view in pixels.

        Raises:
            ValueError: If a view that is cut out is larger than the image and the room around it.
        """
        # a number of all images after the other: NumPy rounds strided arrays by other code than contiguous ones
        columns = np.ascontiguousarray(uniforms.T)
        flip, blurred, sigma, solarised = columns[10:]
        least, greatest = self.blur_sigma
        boxes = self._boxes(columns[:4], height, width, size)
        boxes[flip < self.flip, 0] *= -1
        return ViewParameters(
            boxes=boxes,
            colours=self._colours(columns[4:10]) if self.jitter or self.grey else None,
            sigmas=np.where(blurred < self.blur, least + (greatest - least) * sigma, 0.0),
            solarised=solarised < self.solarise,
        )

    def _boxes(self, columns: NDArray[np.float64], height: int, width: int, size: int) -> NDArray[np.float64]:
        area, aspect, left, top = columns
        if self.crop_scale is None:
            across, down = np.full_like(area, size / width), np.full_like(area, size / height)
        else:
            least, greatest = self.crop_scale
            share, image = least + (greatest - least) * area, width / height
            low, high = self.aspect
            narrowest, widest = np.clip(share * image, low, high), np.clip(image / share, low, high)
            ratio = narrowest * (widest / narrowest) ** aspect
            across, down = np.sqrt(share * ratio / image), np.sqrt(share * image / ratio)
            # an aspect that no box of this area has in a long image makes the box smaller
            excess = np.maximum(1, np.maximum(across, down))
            across, down = across / excess, down / excess
        x, y = self._centre(across, left, width), self._centre(down, top, height)
        return np.stack((across, down, x, y), axis=1)

    def _centre(self, share: NDArray[np.float64], place: NDArray[np.float64], length: int) -> NDArray[np.float64]:
        """Return the centres, the image being [-1, 1], of boxes that take `share` of a side of `length` pixels."""
        slack = int(self.shift * length)
        room = length * (1 - share) + slack
        if share.max(initial=0) * length > length + 2 * slack + 0.5:
            text = f"size must be at most {length + 2 * slack} for a cut from {length} pixels with shift={self.shift:g}"
            raise ValueError(f"{text}, got {round(share.max() * length)}")
        begin = np.clip(np.floor(place * (room + slack + 1) - slack), -slack, room)
        return np.asarray(2 * begin / length + share - 1)

    def _colours(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn, grey, *numbers = columns
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        changes = [strength * (2 * number - 1) for strength, number in zip(strengths, numbers, strict=True)]
        factors = np.where(drawn < self.jitter, changes, 0.0) + np.array([[1.0], [1.0], [1.0], [0.0]])
        factors[2, grey < self.grey] = 0.0
        return np.asarray(factors.T)
