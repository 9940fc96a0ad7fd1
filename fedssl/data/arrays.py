"""A dataset that lies in memory as one array."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class ArrayDataset:
    """Examples of one shape, held in memory; implements `Dataset`.

    Attributes:
        labels: `[num_examples]` int64, indices into `classes`.
        classes: Class names.
        owners: `[num_examples]` owner names; "" where an example has none.
        examples: `[num_examples, frames, height, width, channels]` uint8.

    Raises:
        ValueError: The arrays do not fit together.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    owners: tuple[str, ...]
    examples: NDArray[np.uint8]

    def __post_init__(self) -> None:
        shape, dtype = self.examples.shape, self.examples.dtype
        if len(shape) != 5 or dtype != np.uint8:
            text = "examples must be uint8 [num_examples, frames, height, width, channels]"
            raise ValueError(f"{text}, got {dtype} {list(shape)}")
        if self.labels.shape != shape[:1] or self.labels.dtype != np.int64:
            raise ValueError(f"labels must be int64 [{shape[0]}], got {self.labels.dtype} {list(self.labels.shape)}")
        if len(self.owners) != shape[0]:
            raise ValueError(f"owners must be {shape[0]} names, got {len(self.owners)}")
        if shape[0] and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            span = f"{self.labels.min()} to {self.labels.max()}"
            raise ValueError(f"labels must be in 0 to {len(self.classes) - 1}, got {span}")

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return example `index` as `[frames, height, width, channels]` uint8, a view that is not to be written to.

        Raises:
            IndexError: There is no such example.
        """
        clip: NDArray[np.uint8] = self.examples[index]
        return clip
