"""What every local objective offers to the training loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.models.encoder import Encoder


@dataclass(frozen=True, slots=True)
class Draw:
    """What an objective takes of one example: the frames of each view, and the answer it expects.

    Attributes:
        frames: `[views, frames]` int64 frame indices.
        target: The pretext's own answer (an order, a speed), not the example's label.
    """

    frames: NDArray[np.int64]
    target: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Augmented examples on the device that trains.

    Attributes:
        views: `[batch, views, channels, frames, height, width]` float32 in [0, 1].
        targets: `[batch]` int64, from `Draw.target`.
        indices: `[batch]` int64, positions in the client's dataset.
    """

    views: Tensor
    targets: Tensor
    indices: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """The loss to differentiate, and numbers to log."""

    loss: Tensor
    metrics: Mapping[str, float]


class Objective(Protocol):
    """A local loss with the modules it owns.

    Attributes:
        min_batch: Smallest legal batch.
        min_frames: Fewest frames an example may have.
    """

    min_batch: int
    min_frames: int

    def draw(self, num_frames: int, rng: np.random.Generator) -> Draw:
        """Choose frames of an example that has `num_frames` frames."""
        ...

    def build(self, encoder: Encoder) -> dict[str, nn.Module]:
        """Return the modules beside the backbone, by group name ("head", "projector", "teacher", ...)."""
        ...

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of a batch; `model` holds "backbone" and the groups of `build`."""
        ...
