"""E-SSL: another objective that is also told to see rotations (Dangovski 2022, "Equivariant Contrastive Learning")."""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.objectives.answer import answer_step
from fedssl.objectives.objective import Batch, Draw, Objective, Population, Step
from fedssl.objectives.rotnet import NUM_ROTATIONS, rotations

_HEAD = "rotation_head"


class Essl(Objective):
    """The loss of a host objective plus a weighted prediction of the rotation of one more view, a small crop.

    All that the host promises about privacy, state and batches stays as it is: the added term is of each example alone.

    Args:
        host: The objective that is added to.
        weight: Weight of the rotation loss; 0 leaves the gradient that of the host.
        hidden: Width of the head's two hidden layers.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, host: Objective, weight: float = 0.4, hidden: int = 2048) -> None:
        at_least(0, weight=weight)
        at_least(1, hidden=hidden)
        self.host = host
        self.weight = weight
        self.hidden = hidden
        self.contract = host.contract
        self.views = (*host.views, "local")
        self.min_batch = host.min_batch
        self.min_frames = host.min_frames
        self.num_uniforms = host.num_uniforms
        self.needs_labels = host.needs_labels
        self.unlabelled_ratio = host.unlabelled_ratio

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose the host's frames; the rotated view shows those of its first view."""
        draw = self.host.draw(num_frames, uniforms)
        return dataclasses.replace(draw, frames=np.concatenate((draw.frames, draw.frames[:1])))

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the host's groups and the head that tells rotations.

        Raises:
            ValueError: The host has a group of that name, as another E-SSL has.
        """
        groups = self.host.build(encoder, population)
        if _HEAD in groups:
            raise ValueError(f"host must have no group {_HEAD}, got {type(self.host).__name__}")
        layers: list[nn.Module] = []
        for width in (encoder.feature_dim, self.hidden):
            layers += [nn.Linear(width, self.hidden), nn.LayerNorm(self.hidden), nn.ReLU()]
        return groups | {_HEAD: nn.Sequential(*layers, nn.Linear(self.hidden, NUM_ROTATIONS))}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the host's loss plus the weighted one, the host's metrics, "rotation-loss" and "rotation-accuracy"."""
        hosted = self.host.step(model, dataclasses.replace(batch, views=batch.views[:-1]))
        rotated, turns = rotations(batch.views[-1])
        logits: Tensor = model[_HEAD](model["backbone"](rotated))
        own = answer_step(logits, turns)
        metrics = {"rotation-loss": own.loss.item(), "rotation-accuracy": own.metrics["accuracy"]}
        return dataclasses.replace(
            hosted, loss=hosted.loss + self.weight * own.loss, metrics={**hosted.metrics, **metrics}
        )

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Prepare what the host keeps on the client."""
        self.host.begin_round(model, first=first)

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Move what follows the host's trained tensors."""
        self.host.after_step(model, progress)
