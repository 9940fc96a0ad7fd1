"""One client's examples with its noise on them, and how that noise is made once and kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.data.dataset import Dataset
from fedssl.privacy.unlearnable.noise import Noise, read_noise, write_noise


@dataclass(slots=True)
class ProtectedDataset:
    """The examples of one client as others get to see them; implements `Dataset`, of which only they can be read.

    Attributes:
        dataset: Holds the clean examples, among others.
        noise: Of the client.
        indices: `[num_examples]` of the client, in the order of `noise.rows`.

    Raises:
        ValueError: The noise is of another number of examples.
    """

    dataset: Dataset
    noise: Noise
    indices: NDArray[np.int64]
    labels: NDArray[np.int64] = field(init=False)
    classes: tuple[str, ...] = field(init=False)
    owners: tuple[str, ...] = field(init=False)
    _places: Mapping[int, int] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.indices) != len(self.noise.rows):
            raise ValueError(f"noise must be of {len(self.indices)} examples, got {len(self.noise.rows)}")
        self.labels, self.classes, self.owners = self.dataset.labels, self.dataset.classes, self.dataset.owners
        self._places = {int(index): place for place, index in enumerate(self.indices)}

    def __len__(self) -> int:
        """Return the number of examples, those of others included."""
        return len(self.dataset)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return example `index` as `[frames, height, width, channels]` uint8, with its pattern on every frame.

        Raises:
            IndexError: It is not the client's.
        """
        if index not in self._places:
            raise IndexError(f"example {index} is not one of the {len(self.indices)} that the noise is for")
        return self.noise.apply(self.dataset.read(index), self._places[index])


def stills(dataset: Dataset, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the middle frame of each example, `[num_examples, height, width, channels]`.

    Raises:
        ValueError: Frames have different sizes.
    """
    frames = [(clip := dataset.read(int(index)))[len(clip) // 2] for index in indices]
    for index, frame in zip(indices, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise ValueError(f"images must all be {list(frames[0].shape)}, got {list(frame.shape)} (example {index})")
    return np.stack(frames)


def kept(path: Path | None, make: Callable[[], Noise]) -> Noise:
    """Return the noise of a file, or else make it and write the file.

    Args:
        path: The file; where it cannot be written, the noise is returned all the same. None keeps none.
        make: Makes the noise.

    Raises:
        ValueError: The file is no file of noise.
    """
    if path is not None and path.exists():
        return read_noise(path)
    noise = make()
    if path is not None:
        try:
            path.parent.mkdir(exist_ok=True)
            write_noise(path, noise)
        except OSError:  # another process makes the same bits again
            return noise
    return noise
