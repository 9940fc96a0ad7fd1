"""What every local objective offers to the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.models.encoder import Encoder
from fedssl.privacy.contract import PrivacyContract

Role = Literal["full", "local", "light", "clean"]


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
        views: For each view `[batch, channels, frames, height, width]` float32 in [0, 1].
        targets: `[batch]` int64, from `Draw.target`.
        places: `[batch]` int64, places among the client's own examples, the same in every round.
        uniforms: `[batch, num_uniforms]` float64 in [0, 1), the objective's own; an example's do not depend on the
            others of its batch.
    """

    views: tuple[Tensor, ...]
    targets: Tensor
    places: Tensor
    uniforms: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """The loss to differentiate, and numbers to log."""

    loss: Tensor
    metrics: Mapping[str, float]


class Objective(ABC):
    """A local loss with the modules it owns.

    Attributes:
        contract: What one example's gradient depends on, and what must not leave a client.
        views: The role of each view, which the augmentation turns into pixels: "full" is the objective's usual view
            (its first and second may differ), "local" a small crop, "light" crop and flip alone, "clean" the example.
        min_batch: Smallest legal batch.
        min_frames: Fewest frames an example may have.
        num_uniforms: Random numbers that the objective takes for each example: `draw` and `Batch.uniforms`.
    """

    contract: PrivacyContract
    views: tuple[Role, ...] = ("full",)
    min_batch: int = 1
    min_frames: int = 1
    num_uniforms: int = 0

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose frames of an example that has `num_frames`; unless a pretext says otherwise, each view shows all.

        Args:
            num_frames: Frames of the example; an image has one.
            uniforms: `[num_uniforms]` in [0, 1).
        """
        return Draw(np.tile(np.arange(num_frames), (len(self.views), 1)), 0)

    @abstractmethod
    def build(self, encoder: Encoder, num_examples: int) -> dict[str, nn.Module]:
        """Return the modules beside the backbone, by group name ("projector", "predictor", "head", "teacher", ...).

        Args:
            encoder: The backbone, freshly initialised.
            num_examples: Examples of the largest client; 0 on a server that has no data.
        """

    @abstractmethod
    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of a batch; `model` holds "backbone" and the groups of `build`."""

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:  # noqa: B027 - most objectives need none
        """Prepare what stays on the client for a model that has just come, e.g. the teacher.

        Args:
            model: Holds the received tensors and what this client remembers.
            first: Whether this client takes part for the first time and remembers nothing yet.
        """

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:  # noqa: B027
        """Move what follows the trained tensors, e.g. the teacher; `progress` is the share of the run that is done."""
