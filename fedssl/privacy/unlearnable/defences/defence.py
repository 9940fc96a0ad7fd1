"""What every defence is: up to three changes of what a learner trains on; labels and shapes stay."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Maps images `[n, height, width, channels]` uint8 to as many of the same shape."""


def unchanged(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the images as they are."""
    return images


@dataclass(frozen=True, slots=True)
class Defence:
    """Does nothing; each kind replaces one of the three.

    A kind holds plain numbers, and what it does is a function of them, of its arguments and of the state of `rng`.
    """

    def change(self, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> Change:
        """Return what is done to all images, once, before training.

        Args:
            images: `[n, height, width, channels]` uint8, all that is trained on.
            labels: `[n]` int64.
            seed: Root of every random stream.
        """
        return unchanged

    def batch(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the images and targets of a step, after augmentation.

        Args:
            images: `[batch, channels, height, width]` float32 in 0 to 1.
            targets: `[batch, num_classes]`, of which each row sums to 1.
            rng: Of this step.
        """
        return images, targets

    def attack(self, model: nn.Module, images: Tensor, targets: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the images of a step, made harder for the model that is about to learn from them.

        Args:
            model: Maps images to logits; it is left as it was.
            images: `[batch, channels, height, width]` float32 in 0 to 1.
            targets: `[batch, num_classes]`.
            rng: Of this step.
        """
        return images
