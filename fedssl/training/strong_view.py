"""How a strong view of an image is drawn: RandAugment (Cubuk 2020), then cutout (DeVries & Taylor 2017)."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least, within
from fedssl.training.image_view import ImageView

_CUTOUT_UNIFORMS = 3


class Operation(IntEnum):
    """What may be drawn: colours first, then moves."""

    IDENTITY = 0
    AUTOCONTRAST = 1
    EQUALISE = 2
    BRIGHTNESS = 3
    CONTRAST = 4
    COLOUR = 5
    SHARPNESS = 6
    POSTERISE = 7
    SOLARISE = 8
    ROTATE = 9
    SHEAR_X = 10
    SHEAR_Y = 11
    TRANSLATE_X = 12
    TRANSLATE_Y = 13


_MOVES = (Operation.ROTATE, Operation.SHEAR_X, Operation.SHEAR_Y, Operation.TRANSLATE_X, Operation.TRANSLATE_Y)

# of each operation: the amount that changes nothing, and the two between which its amount is uniform
_RANGES = np.array(
    [
        (0, 0, 0),
        (0, 1, 1),  # share of the result: all
        (0, 1, 1),
        *[(1, 0.05, 0.95)] * 4,  # factors
        (8, 8, 3),  # bits, rounded up: 4 to 8 are equally likely
        (256 / 255, 256 / 255, 0),  # threshold: no pixel is at least 256
        (0, -30, 30),  # degrees
        *[(0, -0.3, 0.3)] * 4,  # pixels to the side by each pixel downwards, or shares of the image
    ]
)


@dataclass(frozen=True, slots=True)
class StrongParameters:
    """What was drawn for the images of a batch.

    Attributes:
        boxes: `[n, 4]`, see `warp`: the flipped and shifted image.
        maps: `[n, 6]`, see `warp`: all moves of an image in one.
        operations: `[num_ops, n]` of `Operation`, in their order; one whose amount changes nothing is the identity.
        amounts: `[num_ops, n]` how much each changes.
        holes: `[n, 4]` cut out pixels: first and one past the last column, then rows.
    """

    boxes: NDArray[np.float64]
    maps: NDArray[np.float64]
    operations: NDArray[np.int64]
    amounts: NDArray[np.float64]
    holes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StrongView:
    """How strong views are drawn: a flip and a shift, then operations of any strength, then a grey square.

    The operations and the ranges of their amounts are those of FixMatch (Sohn 2020, appendix D): each of the 14 is
    equally likely, may be drawn twice, and changes an image by a uniform amount. Translations are by whole pixels.

    Args:
        num_ops: Operations an image.
        magnitude: Share in [0, 1] of the published changes that is made: of each angle, each distance of a factor from
            1, each distance of an equalised image from the image. At 0 only the flip, the shift and cutout remain.
        cutout: Greatest side of the square as a share of the view's; sides are uniform from 0, centres lie anywhere.
        shift: Share of the image by which it may be shifted to each side; beyond its edge it is mirrored.
        flip: Probability of flipping left and right; leave it 0 where direction has a meaning.

    Raises:
        ValueError: If an argument is out of range.
    """

    num_ops: int = 2
    magnitude: float = 1.0
    cutout: float = 0.5
    shift: float = 0.125
    flip: float = 0.5

    def __post_init__(self) -> None:
        at_least(0, num_ops=self.num_ops)
        within(0, 1, magnitude=self.magnitude, cutout=self.cutout, shift=self.shift, flip=self.flip)

    @property
    def num_uniforms(self) -> int:
        """Random numbers that a view takes for each example: an `ImageView`'s, cutout's, two of each operation."""
        return ImageView.num_uniforms + _CUTOUT_UNIFORMS + 2 * self.num_ops

    def draw(self, uniforms: NDArray[np.float64], height: int, width: int, size: int) -> StrongParameters:
        """Return the parameters of images.

        Args:
            uniforms: `[n, num_uniforms]` in [0, 1).
            height: Height of the images in pixels.
            width: Width of the images in pixels; of longer images the largest square is seen, anywhere.
            size: Height and width of the view in pixels.
        """
        weak = ImageView(crop_scale=(1, 1), aspect=(1, 1), shift=self.shift, flip=self.flip, jitter=0, grey=0)
        begins = (ImageView.num_uniforms, ImageView.num_uniforms + _CUTOUT_UNIFORMS)
        placed, cut, drawn = np.split(uniforms, begins, axis=1)
        # a number of all images after the other, as in `ImageView.draw`
        kinds, numbers = np.ascontiguousarray(drawn.T).reshape(self.num_ops, 2, len(uniforms)).swapaxes(0, 1)
        operations = (kinds * len(Operation)).astype(np.int64)
        neutral, first, last = np.moveaxis(_RANGES[operations], -1, 0)
        amounts = neutral + self.magnitude * (first + (last - first) * numbers - neutral)
        amounts = np.where(operations == Operation.POSTERISE, np.ceil(amounts), amounts)
        moved = np.isin(operations, (Operation.TRANSLATE_X, Operation.TRANSLATE_Y))
        amounts = np.where(moved, np.round(amounts * size) / size, amounts)
        operations = np.where(amounts == neutral, Operation.IDENTITY, operations)
        return StrongParameters(
            boxes=weak.draw(placed, height, width, size).boxes,
            maps=composed(operations, amounts),
            operations=operations,
            amounts=amounts,
            holes=self._holes(np.ascontiguousarray(cut.T), size),
        )

    def _holes(self, columns: NDArray[np.float64], size: int) -> NDArray[np.int64]:
        sides = np.round(columns[0] * self.cutout * size)
        begin = np.floor(columns[1:] * size) - sides // 2
        edges = np.stack((begin[0], begin[0] + sides, begin[1], begin[1] + sides), axis=1)
        return np.asarray(np.clip(edges, 0, size), dtype=np.int64)


def composed(operations: NDArray[np.int64], amounts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the maps `[n, 6]`, see `warp`, that do what the moves among `operations` do one after the other.

    Args:
        operations: `[num_ops, n]` of `Operation`.
        amounts: `[num_ops, n]`.
    """
    one, none = np.ones(operations.shape[1:]), np.zeros(operations.shape[1:])
    rows = [[one, none, none], [none, one, none]]
    for kinds, amount in zip(operations, amounts, strict=True):
        degrees, shear_x, shear_y, right, down = (np.where(kinds == move, amount, 0.0) for move in _MOVES)
        sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
        # the view is 2 wide; what moves to the right was seen further left
        own = ((cosine, shear_x - sine, -2 * right), (sine + shear_y, cosine, -2 * down))
        rows = [[x * own[0][i] + y * own[1][i] + (0, 0, at)[i] for i in range(3)] for x, y, at in rows]
    return np.stack([number for row in rows for number in row], axis=1)
