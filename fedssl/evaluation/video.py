"""What an encoder of videos is worth without training anything on top: retrieval and nearest neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedssl.checks import above, at_least
from fedssl.data.dataset import Splits
from fedssl.evaluation.features import ClipProtocol, video_features
from fedssl.evaluation.knn import knn_accuracy
from fedssl.evaluation.retrieval import recall_at
from fedssl.models.encoder import Encoder


@dataclass(frozen=True, slots=True)
class VideoEvaluation:
    """Retrieval of training videos by test videos (Xu 2019), and weighted nearest neighbours (Wu 2018).

    Args:
        height: Height the encoder sees, in pixels.
        width: Width the encoder sees, in pixels.
        ks: Neighbours of the recalls.
        num_clips: Clips of a video; their features are averaged.
        clip_frames: Frames of a clip.
        pool: "avg" takes the mean of the feature map; "max" its maxima in 2 by 2 quarters.
        knn_k: Neighbours that vote.
        knn_temperature: Temperature of the votes.
        batch_size: Clips that the encoder takes at once.

    Raises:
        ValueError: If an argument is out of range.
    """

    height: int
    width: int
    ks: Sequence[int] = (1, 5, 10, 20, 50)
    num_clips: int = 10
    clip_frames: int = 16
    pool: Literal["avg", "max"] = "avg"
    knn_k: int = 20
    knn_temperature: float = 0.07
    batch_size: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "ks", tuple(int(k) for k in self.ks))
        self._protocol()
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks must be numbers of at least 1, got {list(self.ks)}")
        at_least(1, knn_k=self.knn_k, batch_size=self.batch_size)
        above(0, knn_temperature=self.knn_temperature)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores, in order."""
        return (*(f"R@{k}" for k in self.ks), "kNN")

    def __call__(self, encoder: Encoder, splits: Splits, device: torch.device) -> dict[str, float]:
        """Return "R@k" for each k and "kNN", all in [0, 1].

        Args:
            encoder: Lies on `device`; its modes are restored.
            splits: Test videos ask, training videos answer.
            device: Where clips are encoded.

        Raises:
            ValueError: If a split is empty.
        """
        train, test = splits.train, splits.test
        bank = video_features(encoder, train, self._protocol(), self.batch_size, device)
        queries = video_features(encoder, test, self._protocol(), self.batch_size, device)
        recalls = recall_at(queries, bank, test.labels, train.labels, self.ks)
        accuracy = knn_accuracy(
            bank, train.labels, queries, test.labels, len(train.classes), self.knn_k, self.knn_temperature
        )
        return {**{f"R@{k}": recall for k, recall in recalls.items()}, "kNN": accuracy}

    def _protocol(self) -> ClipProtocol:
        """Return the part of the settings that makes features."""
        return ClipProtocol(self.num_clips, self.clip_frames, self.height, self.width, self.pool)
