"""Linearly separable patches (Yu et al. 2022, "Availability Attacks Create Shortcuts"): noise made without a model.

A model prefers what is simplest to tell apart, so a pattern of large patches for each class hides the images.
"""

from dataclasses import dataclass

import numpy as np

from fedssl.checks import at_least, one_of
from fedssl.privacy.unlearnable.groups import SHARED, Shared, rows_of
from fedssl.privacy.unlearnable.noise import Noise
from fedssl.privacy.unlearnable.protector import Owned, Protector
from fedssl.seeding import generator


@dataclass(frozen=True, kw_only=True)
class LinearlySeparable(Protector):
    """Squares of one value each, drawn from a Gaussian for each group of images; the largest value is the budget.

    Attributes:
        per: What shares a pattern.
        num_clusters: Clusters of pixels, of `per="cluster"`.
        patch: Side of a square in pixels; the last ones of a row or a column may be cut.

    Raises:
        ValueError: An argument is out of range.
    """

    per: Shared = "class"
    num_clusters: int = 10
    patch: int = 8

    def __post_init__(self) -> None:
        Protector.__post_init__(self)
        one_of(SHARED, per=self.per)
        at_least(1, num_clusters=self.num_clusters, patch=self.patch)

    @property
    def needs_labels(self) -> bool:
        """Whether patterns are those of classes."""
        return self.per == "class"

    def fit(self, owned: Owned) -> Noise:
        """Return noise for an owner's images.

        Raises:
            ValueError: A class is missing, or there are more clusters than images.
        """
        rows, number = rows_of(owned, self.per, self.num_clusters)
        height, width, channels = owned.images.shape[1:]
        grid = (number, -(-height // self.patch), -(-width // self.patch), channels)
        values = generator(owned.seed, "unlearnable", "linearly_separable").standard_normal(grid)
        values *= self.budget / np.abs(values).max(axis=(1, 2, 3), keepdims=True)
        patches = np.rint(values).astype(np.int16).repeat(self.patch, axis=1).repeat(self.patch, axis=2)
        return Noise(patches[:, :height, :width], rows, self.budget)
