"""Random noise, which any other protection must beat: shared by a class it is already a shortcut for classifiers."""

from dataclasses import dataclass

import numpy as np

from fedssl.checks import at_least, one_of
from fedssl.privacy.unlearnable.groups import PER, Per, rows_of
from fedssl.privacy.unlearnable.noise import Noise
from fedssl.privacy.unlearnable.protector import Owned, Protector
from fedssl.seeding import generator


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Protector):
    """Whole levels, each drawn alone and evenly from all within the budget.

    Attributes:
        per: What shares a pattern.
        num_clusters: Clusters of pixels, of `per="cluster"`.

    Raises:
        ValueError: An argument is out of range.
    """

    per: Per = "class"
    num_clusters: int = 10

    def __post_init__(self) -> None:
        Protector.__post_init__(self)
        one_of(PER, per=self.per)
        at_least(1, num_clusters=self.num_clusters)

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
        shape = (number, *owned.images.shape[1:])
        drawn = generator(owned.seed, "unlearnable", "random").integers(
            -self.budget, self.budget, shape, np.int16, True
        )
        return Noise(drawn, rows, self.budget)
