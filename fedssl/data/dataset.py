"""What every dataset offers: examples by index, and what is known about each."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Dataset(Protocol):
    """Examples by index; an image is a video of one frame.

    Attributes:
        labels: `[num_examples]` int64, indices into `classes`.
        classes: Class names.
        owners: `[num_examples]` names of the natural group (a person, a hospital) each example belongs to.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    owners: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return example `index` as `[frames, height, width, channels]` uint8."""
        ...


@dataclass(frozen=True, slots=True)
class Splits:
    """The examples that clients train on, and the held-out examples that the server evaluates on."""

    train: Dataset
    test: Dataset
