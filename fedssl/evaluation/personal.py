"""Personalised evaluation: how well a client's own examples are told apart by the model that it would use itself."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedssl.checks import above, at_least
from fedssl.data.dataset import Dataset
from fedssl.data.split import by_label
from fedssl.evaluation.features import ClipProtocol, video_features
from fedssl.evaluation.knn import knn_accuracy
from fedssl.models.encoder import Encoder

_Indices = NDArray[np.int64]


def client_score_names(score: str) -> tuple[str, str]:
    """Return the names of a score's mean over clients, weighted by held-out examples, and of its least value."""
    return f"{score}, clients", f"{score}, worst client"


@dataclass(frozen=True, slots=True)
class PersonalEvaluation:
    """A vote of the client's own training examples on the class of its held-out ones.

    Args:
        held_out: Share of each class of a client's examples that it never trains on, in (0, 1).
        height: Height the encoder sees, in pixels.
        width: Width the encoder sees, in pixels.
        num_clips: Clips of an example; their features are averaged. An image is one clip of one frame.
        clip_frames: Frames of a clip.
        knn_k: Neighbours that vote.
        knn_temperature: Temperature of the votes.
        batch_size: Clips that the encoder takes at once.

    Raises:
        ValueError: If an argument is out of range.
    """

    held_out: float
    height: int
    width: int
    num_clips: int = 1
    clip_frames: int = 1
    knn_k: int = 5
    knn_temperature: float = 0.07
    batch_size: int = 64

    def __post_init__(self) -> None:
        self._protocol()
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be above 0 and below 1, got {self.held_out}")
        at_least(1, knn_k=self.knn_k, batch_size=self.batch_size)
        above(0, knn_temperature=self.knn_temperature)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores, in order."""
        return ("kNN",)

    def split(
        self, indices: _Indices, labels: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[_Indices, _Indices]:
        """Divide a client's examples into those it trains on and those it is scored on.

        Args:
            indices: `[n]` the client's examples.
            labels: `[n]` their labels.
            rng: Chooses.

        Raises:
            ValueError: No class of the client has two examples.
        """
        train, held_out = by_label(labels, self.held_out, rng)
        return indices[train], indices[held_out]

    def __call__(
        self, encoder: Encoder, dataset: Dataset, train: _Indices, held_out: _Indices, device: torch.device
    ) -> dict[str, float]:
        """Return the accuracy "kNN" in [0, 1] of the client's held-out examples among its training examples.

        Args:
            encoder: Lies on `device`; its modes are restored.
            dataset: Holds the examples of every client of this process.
            train: `[n]` examples the client trains on.
            held_out: `[m]` the others.
            device: Where examples are encoded.
        """
        bank, queries = (
            video_features(encoder, dataset, self._protocol(), self.batch_size, device, indices)
            for indices in (train, held_out)
        )
        labels, classes = dataset.labels, len(dataset.classes)
        accuracy = knn_accuracy(
            bank, labels[train], queries, labels[held_out], classes, self.knn_k, self.knn_temperature
        )
        return {"kNN": accuracy}

    def _protocol(self) -> ClipProtocol:
        return ClipProtocol(self.num_clips, self.clip_frames, self.height, self.width, "avg")
