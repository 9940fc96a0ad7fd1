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

Role = Literal["full", "local", "light", "strong", "clean"]
UNKNOWN = -1
"""The label of an example whose class the client does not know."""
CLASSIFIER = "classifier"
"""The group of the linear map from the backbone's feature to classes, where an objective has one."""


@dataclass(frozen=True, slots=True)
class Population:
    """What the size of an objective's modules may depend on.

    Attributes:
        num_examples: Examples of the largest client; 0 on a server that has no data.
        num_classes: Classes of the data; 0 where nobody could say.
    """

    num_examples: int
    num_classes: int = 0


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
        labels: `[batch]` int64, the class of each example, `UNKNOWN` where the client does not know it.
    """

    views: tuple[Tensor, ...]
    targets: Tensor
    places: Tensor
    uniforms: Tensor
    labels: Tensor

    @property
    def labelled(self) -> Tensor:
        """Whether each label is known, `[batch]` bool."""
        return self.labels != UNKNOWN

    def where(self, chosen: Tensor) -> "Batch":
        """Return the examples of the mask `chosen`, `[batch]` bool."""
        views = tuple(view[chosen] for view in self.views)
        rest = (self.targets, self.places, self.uniforms, self.labels)
        return Batch(views, *(tensor[chosen] for tensor in rest))


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """What an objective takes unlabelled examples of a batch for.

    Attributes:
        places: `[n]` int64, places among the client's own examples.
        labels: `[n]` int64 classes.
        accepted: `[n]` bool, whether the objective learns from the label.
    """

    places: Tensor
    labels: Tensor
    accepted: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """The loss to differentiate, and what to log.

    Attributes:
        loss: A number with its graph.
        metrics: Named numbers, as tensors without dimensions or graphs where they come from tensors: reading one here
            would forbid to compute the steps of several examples at once.
        pseudo_labels: What unlabelled examples were taken for; whoever knows the truth compares.
        terms: The supervised and the unsupervised part of the loss, with their graphs, where there are both: the
            angle between their gradients is measured once a round.
    """

    loss: Tensor
    metrics: Mapping[str, float | Tensor]
    pseudo_labels: PseudoLabels | None = None
    terms: tuple[Tensor, Tensor] | None = None


class Objective(ABC):
    """A local loss with the modules it owns.

    Attributes:
        contract: What one example's gradient depends on, and what must not leave a client.
        views: The role of each view, which the augmentation turns into pixels: "full" is the objective's usual view
            (its first and second may differ), "local" a small crop, "light" crop and flip alone, "strong" what a
            classifier's answer should not depend on, "clean" the example.
        min_batch: Smallest legal batch.
        min_frames: Fewest frames an example may have.
        num_uniforms: Random numbers that the objective takes for each example: `draw` and `Batch.uniforms`.
        needs_labels: Whether it learns from labelled examples alone: a client leaves the others out, and one without
            labels takes no part.
        unlabelled_ratio: Unlabelled examples for each labelled one in the batches of a client that has both; None
            draws batches from all of its examples alike.
    """

    contract: PrivacyContract
    views: tuple[Role, ...] = ("full",)
    min_batch: int = 1
    min_frames: int = 1
    num_uniforms: int = 0
    needs_labels: bool = False
    unlabelled_ratio: int | None = None

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose frames of an example that has `num_frames`; unless a pretext says otherwise, each view shows all.

        Args:
            num_frames: Frames of the example; an image has one.
            uniforms: `[num_uniforms]` in [0, 1).
        """
        return Draw(np.tile(np.arange(num_frames), (len(self.views), 1)), 0)

    @abstractmethod
    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the modules beside the backbone, by group name ("projector", "classifier", "head", "teacher", ...).

        Args:
            encoder: The backbone, freshly initialised.
            population: What sizes may depend on.
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
