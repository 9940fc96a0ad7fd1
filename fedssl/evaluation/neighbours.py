"""Test videos beside the training videos nearest to them, before and after training: retrieval (Xu 2019) to look at."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.data.dataset import Dataset, Splits
from fedssl.data.file_dataset import FileDataset
from fedssl.evaluation.features import video_features
from fedssl.evaluation.similarity import nearest
from fedssl.evaluation.video import VideoEvaluation
from fedssl.models.encoder import Encoder

QUERIES, NEAREST, STILLS = 6, 5, 3


@dataclass(frozen=True, slots=True)
class Shown:
    """A video to look at.

    Attributes:
        index: Its place in its data set.
        label: Name of its class.
        stills: `[STILLS, height, width, channels]` uint8, the middle frame of each third of it.
    """

    index: int
    label: str
    stills: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Answer:
    """A test video, and the training videos nearest to it by each encoder, nearest first.

    Attributes:
        query: The test video.
        trained: At most `NEAREST` training videos, by the trained encoder.
        untrained: As many, by the untrained one.
    """

    query: Shown
    trained: tuple[Shown, ...]
    untrained: tuple[Shown, ...]


class _Both(nn.Module):
    """The feature maps of two encoders in one, so that a video is read and decoded once for both."""

    def __init__(self, first: Encoder, second: Encoder) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, clips: Tensor) -> Tensor:
        return torch.cat([self.first.feature_map(clips), self.second.feature_map(clips)], dim=1)


def neighbours(
    trained: Encoder, untrained: Encoder, splits: Splits, evaluation: VideoEvaluation, device: torch.device
) -> tuple[Answer, ...]:
    """Return a few test videos with the training videos nearest to them, by the features and cosines of `evaluation`.

    It costs one more reading of the training videos, and a pass of each encoder over them.

    Args:
        trained: Lies on `device`; its modes are restored.
        untrained: The same of the encoder before training.
        splits: Test videos ask, training videos answer.
        evaluation: Says what the feature of a video is.
        device: Where clips are encoded.

    Raises:
        ValueError: If a split is empty.
        FloatingPointError: A feature is not a finite number.
    """
    train, test = splits.train, splits.test
    both = Encoder(_Both(trained, untrained), trained.feature_dim + untrained.feature_dim)
    asked = choose(test, QUERIES)
    bank = video_features(both, train, evaluation.protocol, evaluation.batch_size, device)
    rows = video_features(both, test, evaluation.protocol, evaluation.batch_size, device, asked)
    cut = [bank.shape[1] * trained.feature_dim // both.feature_dim]
    found = [
        np.concatenate([items for _, items, _ in nearest(own_rows, own_bank, NEAREST)])
        for own_rows, own_bank in zip(np.split(rows, cut, axis=1), np.split(bank, cut, axis=1), strict=True)
    ]
    return tuple(
        Answer(_shown(test, query), *(tuple(_shown(train, item) for item in items) for items in answers))
        for query, *answers in zip(asked, *found, strict=True)
    )


def choose(dataset: Dataset, number: int) -> NDArray[np.int64]:
    """Return the first video of each class, then the second of each, until there are `number`.

    Classes come in the order of their names, videos in that of their files; those without files as they are numbered.
    """
    paths = dataset.paths if isinstance(dataset, FileDataset) else ()
    order = sorted(range(len(dataset)), key=paths.__getitem__) if paths else range(len(dataset))
    turns: Counter[str] = Counter()
    ranked = []
    for place in order:
        label = dataset.classes[dataset.labels[place]]
        ranked.append((turns[label], label, place))
        turns[label] += 1
    return np.array([place for *_, place in sorted(ranked)[:number]], dtype=np.int64)


def _shown(dataset: Dataset, index: np.int64) -> Shown:
    video = dataset.read(int(index))
    middles = (2 * np.arange(STILLS) + 1) * len(video) // (2 * STILLS)
    return Shown(int(index), dataset.classes[dataset.labels[index]], video[middles])
