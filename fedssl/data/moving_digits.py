"""Real handwritten digits in motion: the label is the motion, whatever the digit."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.dataset import Splits
from fedssl.data.digits import load_images
from fedssl.data.motion import MOTIONS, draw_mask, hat_weights, trajectory
from fedssl.data.split import by_label, check_channels
from fedssl.seeding import generator

GRID = 4
"""The background is a random grid of this many values a side, smoothly enlarged."""


@dataclass(slots=True)
class MovingDigits:
    """Clips drawn when they are read, each from its own stream of random numbers; implements `Dataset`.

    Attributes:
        split: "train" or "test", part of the name of every random stream.
        length: Number of clips.
        num_classes: How many of the motions occur, 2 to 8.
        num_frames: Frames a clip.
        size: Height and width in pixels.
        channels: 1 or 3.
        seed: Root of the random streams.
        images: `[num_images, 8, 8]` uint8, the digits that clips are made of.
        labels: `[length]` int64; clip `i` has label `i % num_classes`.
        classes: Names of the motions.
        owners: "" for every clip.
    """

    split: str
    length: int
    num_classes: int
    num_frames: int
    size: int
    channels: int
    seed: int
    images: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64] = field(init=False, repr=False)
    classes: tuple[str, ...] = field(init=False)
    owners: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.labels = np.arange(self.length, dtype=np.int64) % self.num_classes
        self.classes = MOTIONS[: self.num_classes]
        self.owners = ("",) * self.length

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.length

    def source(self, index: int) -> int:
        """Return which of `images` moves in clip `index`; it does not depend on the label."""
        return self._draw_source(self._stream(index))

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return clip `index` as `[num_frames, size, size, channels]` uint8, the same bits at every call.

        Raises:
            IndexError: There is no such clip.
        """
        rng = self._stream(index)
        image = self.images[self._draw_source(rng)].astype(np.float32) / 255
        mask = draw_mask(image, self.size, self._curve(int(self.labels[index]), rng))[..., None]
        background, colour = self._background(rng), rng.uniform(0.6, 1.0, self.channels).astype(np.float32)
        clip = background + mask * (colour - background)
        noise = rng.standard_normal(clip.shape, dtype=np.float32)
        clip += np.float32(rng.uniform(0.02, 0.06)) * noise
        return np.rint(np.clip(clip, 0, 1) * 255).astype(np.uint8)

    def _stream(self, index: int) -> np.random.Generator:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        return generator(self.seed, "moving_digits", self.split, int(index))

    def _draw_source(self, rng: np.random.Generator) -> int:
        return int(rng.integers(len(self.images)))

    def _curve(self, label: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return `[frames, 3]`: centre x, centre y and side length in pixels."""
        speed, phase = rng.uniform(0.5, 0.9), rng.uniform(0, 2 * np.pi)
        middle, side = rng.uniform(0.35, 0.65, 2), rng.uniform(0.28, 0.45)
        curve = trajectory(MOTIONS[label], self.num_frames, speed, phase)
        place = (middle + curve[:, :2]) * self.size - 0.5
        return np.column_stack([place, side * self.size * curve[:, 2]])

    def _background(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return a smooth random picture, `[size, size, channels]` float32 in 0 to 0.5."""
        grid = rng.uniform(0, 0.5, (self.channels, GRID, GRID)).astype(np.float32)
        middle, pitch = np.array([(self.size - 1) / 2]), np.array([(self.size - 1) / (GRID - 1)])
        weights = hat_weights(self.size, middle, pitch, GRID)[0]
        return np.ascontiguousarray((weights @ grid @ weights.T).transpose(1, 2, 0))


def moving_digits(
    num_train: int = 1500,
    num_test: int = 400,
    num_classes: int = 8,
    num_frames: int = 24,
    size: int = 32,
    channels: int = 1,
    seed: int = 0,
) -> Splits:
    """Return clips of real digits that move over a noisy background; training and test share no digit image.

    Args:
        num_train: Number of training clips.
        num_test: Number of test clips.
        num_classes: Number of motions, 2 to 8; see `MOTIONS`.
        num_frames: Frames a clip, at least 2.
        size: Height and width in pixels, at least 8.
        channels: 1 or 3.
        seed: Root of the random streams: the same seed gives the same clips everywhere.

    Returns:
        The training and the test clips.

    Raises:
        ValueError: An argument is out of range.
    """
    at_least(1, num_train=num_train, num_test=num_test)
    at_least(2, num_frames=num_frames)
    at_least(8, size=size)
    if not 2 <= num_classes <= len(MOTIONS):
        raise ValueError(f"num_classes must be 2 to {len(MOTIONS)}, got {num_classes}")
    check_channels(channels)
    images, shown = load_images()
    parts = by_label(shown, 0.2, generator(seed, "moving_digits", "sources"))

    def build(split: str, length: int, part: NDArray[np.int64]) -> MovingDigits:
        return MovingDigits(split, length, num_classes, num_frames, size, channels, seed, images[part])

    return Splits(build("train", num_train, parts[0]), build("test", num_test, parts[1]))
