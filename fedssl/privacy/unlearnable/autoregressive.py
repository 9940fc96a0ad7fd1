"""Autoregressive perturbations (Sandoval-Segura et al. 2022, "Autoregressive Perturbations for Data Poisoning").

Each value is a weighted sum of its neighbours above and to the left; the weights are those of the image's class, and a
single convolution can tell them apart. Noise is made without a model.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least, one_of
from fedssl.privacy.unlearnable.groups import SHARED, Shared, by_sample, rows_of
from fedssl.privacy.unlearnable.noise import Noise
from fedssl.privacy.unlearnable.protector import Owned, Protector
from fedssl.seeding import generator

WINDOW = 3
NEIGHBOURS = tuple((WINDOW - 1 - place // WINDOW, WINDOW - 1 - place % WINDOW) for place in range(WINDOW**2 - 1))
"""Rows above and columns to the left of a value, of each of the values that it follows from."""

_CROPPED, _TILE = 4, 32
_DAMPED, _FIELDS = 6, 4


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Protector):
    """For each image a process of its own that starts from Gaussian noise, with the weights of its group.

    Images of more than 32 pixels a side are laid out in tiles of that size: no weights stay even over a long way.

    Attributes:
        per: What shares the weights.
        num_clusters: Clusters of pixels, of `per="cluster"`.

    Raises:
        ValueError: An argument is out of range.
    """

    per: Shared = "class"
    num_clusters: int = 10

    def __post_init__(self) -> None:
        Protector.__post_init__(self)
        one_of(SHARED, per=self.per)
        at_least(1, num_clusters=self.num_clusters)

    @property
    def needs_labels(self) -> bool:
        """Whether weights are those of classes."""
        return self.per == "class"

    def fit(self, owned: Owned) -> Noise:
        """Return noise for an owner's images.

        Raises:
            ValueError: A class is missing, or there are more clusters than images.
        """
        groups, number = rows_of(owned, self.per, self.num_clusters)
        _, height, width, channels = owned.images.shape
        tall, wide = min(height, _TILE), min(width, _TILE)
        down, across = -(-height // tall), -(-width // wide)
        patterns = np.zeros(owned.images.shape, dtype=np.int16)
        rng = generator(owned.seed, "unlearnable", "autoregressive")
        weights = draw_weights(number * channels, tall, wide, rng).reshape(number, channels, -1)
        for group in range(number):
            members = np.flatnonzero(groups == group)
            tiles = process(weights[group], len(members) * down * across, tall, wide, rng)
            tiles = tiles.reshape(-1, down, across, tall, wide, channels).swapaxes(2, 3)
            values = tiles.reshape(-1, down * tall, across * wide, channels)[:, :height, :width]
            values *= self.budget / np.abs(values).max(axis=(1, 2, 3), keepdims=True)
            patterns[members] = np.rint(values)
            owned.say("noise", group + 1, number)
        return Noise(patterns, by_sample(len(groups)), self.budget)


def process(
    weights: NDArray[np.float64], number: int, height: int, width: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return fields in which each value is a weighted sum of its neighbours; what they started from is cut off.

    Args:
        weights: `[channels, 8]`, in the order of `NEIGHBOURS`.
        number: Fields.
        height: Of a field.
        width: Of a field.
        rng: Draws what the fields start from.

    Returns:
        `[number, height, width, channels]`.
    """
    fields = rng.standard_normal((height + _CROPPED, width + _CROPPED, number, len(weights)))
    for row in range(WINDOW - 1, height + _CROPPED):
        for column in range(WINDOW - 1, width + _CROPPED):
            near = np.stack([fields[row - up, column - left] for up, left in NEIGHBOURS], axis=-1)
            fields[row, column] = (near * weights).sum(axis=-1)
    return fields[_CROPPED:, _CROPPED:].transpose(2, 0, 1, 3)


def draw_weights(number: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return Gaussian weights `[number, 8]`, damped until fields of that size neither die out nor explode.

    If each weight is multiplied by r to the power of its distance, a field is by r to the power of the place: so what
    was measured to grow can be taken out.
    """
    up, left = np.array(NEIGHBOURS).T
    weights = rng.standard_normal((number, len(NEIGHBOURS)))
    for _ in range(_DAMPED):
        sizes = np.abs(process(weights, _FIELDS, height, width, rng)).mean(axis=0)
        down, right = _growth(sizes.mean(axis=1)), _growth(sizes.mean(axis=0))
        weights *= np.exp(-np.outer(down, up) - np.outer(right, left))
    return weights


def _growth(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much the logarithm of sizes `[length, number]` rises from one place to the next."""
    places = np.arange(len(sizes)) - (len(sizes) - 1) / 2
    return np.asarray(places @ np.log(sizes) / max(1.0, float(places @ places)), dtype=np.float64)
