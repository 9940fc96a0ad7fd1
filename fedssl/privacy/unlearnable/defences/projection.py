"""Orthogonal projection: what a linear model tells classes by is taken out of images (Sandoval-Segura 2023).

"What Can We Learn from Unlearnable Datasets?".
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedssl.checks import above, at_least
from fedssl.evaluation.sgd import Classifier, SgdSchedule, train_classifier
from fedssl.privacy.unlearnable.defences.defence import Change, Defence
from fedssl.privacy.unlearnable.noise import LEVELS

_BATCH = 128
_NEGLIGIBLE = 1e-4  # of the largest singular value: the weights of all classes sum to zero, up to round-off


@dataclass(frozen=True, slots=True)
class Projection(Defence):
    """Projects differences from the mean image onto what is orthogonal to the weights of a linear classifier.

    Args:
        epochs: Of the linear classifier.
        learning_rate: Of the linear classifier.

    Raises:
        ValueError: An argument is out of range.
    """

    epochs: int = 20
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs)
        above(0, learning_rate=self.learning_rate)

    def change(self, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> Change:
        """Return the projection, rounded and clamped to 8 bits."""
        rows = _rows(images)
        mean = rows.mean(dim=0)
        directions = self._directions(rows, mean, torch.from_numpy(labels), seed)

        def projected(some: NDArray[np.uint8]) -> NDArray[np.uint8]:
            away = _rows(some) - mean
            left = away - (away @ directions) @ directions.T + mean
            return (left * LEVELS).round().clamp(0, LEVELS).numpy().astype(np.uint8).reshape(some.shape)

        return projected

    def _directions(self, rows: torch.Tensor, mean: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.Tensor:
        """Return orthonormal columns `[dim, fewer than num_classes]` that span the classifier's weights."""
        # one scale for all pixels, so that weights are directions of images
        scale = torch.full_like(mean, float((rows - mean).square().mean().sqrt().clamp(min=1 / LEVELS)))
        classifier = Classifier(nn.Identity(), mean, scale, int(labels.max()) + 1)
        steps = self.epochs * math.ceil(len(rows) / _BATCH)

        def seen(places: NDArray[np.int64], step: int) -> torch.Tensor:
            return rows[torch.from_numpy(places)]

        train_classifier(classifier, seen, labels, SgdSchedule(steps, _BATCH, self.learning_rate), seed)
        columns, values, _ = torch.linalg.svd(classifier.weight.detach(), full_matrices=False)
        kept: torch.Tensor = columns[:, values > _NEGLIGIBLE * values[0]]
        return kept


def _rows(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / LEVELS)
