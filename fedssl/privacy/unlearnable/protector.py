"""What every kind of protection is: a function from one owner's images to noise for them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fedssl.checks import within
from fedssl.privacy.unlearnable.noise import Noise

Say = Callable[[str, int, int], None]
"""Tells how far it is: what is done, steps done, and all steps."""


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Owned:
    """What an owner has, and what its noise is made with.

    Attributes:
        images: `[num_images, height, width, channels]` uint8; of a video its middle frame.
        labels: `[num_images]` int64 in 0 to `num_classes` - 1, or -1 where the owner knows none.
        num_classes: Of the owner's labels.
        seed: Root of every random stream of the noise.
        device: That the noise is made on.
        say: Called now and then.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    num_classes: int
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    say: Say = silent


@dataclass(frozen=True, kw_only=True)
class Protector(ABC):
    """Makes noise that is added to images once, before anybody learns from them.

    Attributes:
        budget: Largest change of a pixel, in levels of 255.

    Raises:
        ValueError: An argument is out of range.
    """

    budget: int = 8

    def __post_init__(self) -> None:
        within(1, 255, budget=self.budget)

    @property
    def needs_labels(self) -> bool:
        """Whether every example must have a label."""
        return False

    @abstractmethod
    def fit(self, owned: Owned) -> Noise:
        """Return noise for an owner's images, the same for the same arguments.

        Raises:
            ValueError: A label is missing where one is needed, or there are too few images.
        """
