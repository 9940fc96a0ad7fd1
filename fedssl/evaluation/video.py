"""What an encoder of videos is worth: retrieval and neighbours as it is, and classifiers that are trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.checks import above, at_least
from fedssl.data.dataset import Dataset, Splits
from fedssl.evaluation.features import ClipProtocol, Pooled, mean_feature
from fedssl.evaluation.fine_tune import FineTune
from fedssl.evaluation.image_set import Views
from fedssl.evaluation.knn import knn_accuracy
from fedssl.evaluation.linear_probe import LinearProbe, standardisation
from fedssl.evaluation.retrieval import recall_at
from fedssl.evaluation.video_set import VideoSet
from fedssl.models.encoder import Encoder

RETRIEVAL, KNN, LINEAR, FINE_TUNE = SCORES = ("retrieval", "kNN", "linear", "fine-tune")


@dataclass(frozen=True, slots=True)
class VideoEvaluation:
    """Scores of an encoder on training and test videos; each random clip is drawn by name.

    "retrieval" and "kNN" compare the features of whole videos. "linear" learns from the same evenly spread clips of the
    training videos, "fine-tune" from random clips that are cropped and flipped. Both answer for a test video by the
    usual protocol: `num_clips` evenly spread clips, 10 as a rule, whose softmax probabilities are averaged
    (Feichtenhofer 2019, "SlowFast Networks for Video Recognition", with one view of the whole frame a clip).

    Args:
        height: Height the encoder sees, in pixels.
        width: Width the encoder sees, in pixels.
        scores: What is measured, of "retrieval", R@k of training videos by test videos (Xu 2019), "kNN", weighted
            neighbours (Wu 2018), "linear", a linear probe of clips, and "fine-tune", a copy of the encoder and a linear
            layer that learn together.
        ks: Neighbours of the recalls.
        num_clips: Clips of a video; for "retrieval" and "kNN" their features are averaged. None: as many as fit, one
            after another, for these two alone.
        clip_frames: Frames of a clip.
        clip_stride: Frames of the video from one frame of a clip to the next.
        pool: "avg" takes the mean of the feature map; "max" its maxima in 2 by 2 quarters.
        knn_k: Neighbours that vote.
        knn_temperature: Temperature of the votes.
        batch_size: Clips that the encoder takes at once.
        seed: Root of what is random; runs that are compared need the same one.
        crop_scale: Least and greatest share of the area that a random clip keeps.
        flip: Probability that it is flipped left and right; leave it 0 where direction has a meaning.
        linear: The linear probe.
        fine_tune: How the copy of the encoder learns.

    Raises:
        ValueError: If an argument is out of range.
    """

    height: int
    width: int
    scores: Sequence[str] = (RETRIEVAL, KNN)
    ks: Sequence[int] = (1, 5, 10, 20, 50)
    num_clips: int | None = 10
    clip_frames: int = 16
    clip_stride: int = 1
    pool: Literal["avg", "max"] = "avg"
    knn_k: int = 20
    knn_temperature: float = 0.07
    batch_size: int = 64
    seed: int = 0
    crop_scale: Sequence[float] = (0.5, 1.0)
    flip: float = 0.0
    linear: LinearProbe = field(default_factory=LinearProbe)
    fine_tune: FineTune = field(default_factory=FineTune)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ks", tuple(int(k) for k in self.ks))
        for name in ("scores", "crop_scale"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self.protocol  # noqa: B018 - a number that is out of range
        self._views()
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks must be numbers of at least 1, got {list(self.ks)}")
        at_least(1, knn_k=self.knn_k, batch_size=self.batch_size)
        above(0, knn_temperature=self.knn_temperature)
        self._check_scores()

    def _check_scores(self) -> None:
        if not self.scores or len(set(self.scores)) < len(self.scores):
            raise ValueError(f"scores must be different names, at least one, got {list(self.scores)}")
        if unknown := [score for score in self.scores if score not in SCORES]:
            raise ValueError(f"scores must be among {', '.join(SCORES)}, got {unknown[0]}")
        if LINEAR in self.scores and self.linear.mode == "ridge":
            raise ValueError("linear.mode must be lbfgs or sgd for videos, whose probabilities are averaged, got ridge")
        if self._by_clip and self.num_clips is None:
            raise ValueError(f"num_clips must be a number of at least 1 with {LINEAR} or {FINE_TUNE}, got null")
        if LINEAR in self.scores and self.linear.augment:
            raise ValueError("linear.augment must be false for videos: fine_tune.encoder_factor=0 does it, got true")

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores, in order."""
        return tuple(name for score in self.scores for name in self._names(score))

    def _names(self, score: str) -> tuple[str, ...]:
        if score == RETRIEVAL:
            return tuple(f"R@{k}" for k in self.ks)
        return (score, f"{score} std") if score == FINE_TUNE and self.fine_tune.repeats > 1 else (score,)

    def __call__(self, encoder: Encoder, splits: Splits, device: torch.device) -> dict[str, float]:
        """Return the scores by the names of `score_names`, all in [0, 1].

        Args:
            encoder: Lies on `device`; neither its tensors nor its modes are changed.
            splits: Training videos are learned from or answer, test videos ask.
            device: Where clips are encoded and classifiers are trained.

        Raises:
            ValueError: If a split is empty.
            FloatingPointError: A feature or the loss of a classifier is not a finite number.
        """
        network = Pooled(encoder, self.pool)
        train, test = (self._videos(split, device) for split in (splits.train, splits.test))
        bank = self._features(network, train)
        values: dict[str, float] = {}
        if set(self.scores) != {FINE_TUNE}:
            values |= self._frozen(train, bank, test, self._features(network, test))
        if FINE_TUNE in self.scores:
            values |= self._tuned(network, train, test, standardisation(bank.flatten(0, 1)))
        return {name: values[name] for name in self.score_names}

    def _frozen(self, train: VideoSet, bank: Tensor, test: VideoSet, queries: Tensor) -> dict[str, float]:
        """Return the scores of features `[num_videos, clips, d]`."""
        values: dict[str, float] = {}
        labels, asked, num_classes = train.labels, test.labels, len(train.dataset.classes)
        items, whole = (mean_feature(each).cpu().numpy() for each in (bank, queries))
        if RETRIEVAL in self.scores:
            values |= {f"R@{k}": recall for k, recall in recall_at(whole, items, asked, labels, self.ks).items()}
        if KNN in self.scores:
            values[KNN] = knn_accuracy(items, labels, whole, asked, num_classes, self.knn_k, self.knn_temperature)
        if LINEAR in self.scores:
            known, wanted = (torch.from_numpy(each).to(bank.device) for each in (labels, asked))
            values[LINEAR] = self.linear.fit(bank, known, num_classes, self.seed).accuracy(queries, wanted)
        return values

    def _tuned(
        self, network: nn.Module, train: VideoSet, test: VideoSet, standard: tuple[Tensor, Tensor]
    ) -> dict[str, float]:
        values = self.fine_tune.accuracies(network, train, test, "100%", standard, self.seed)
        return {FINE_TUNE: float(np.mean(values)), f"{FINE_TUNE} std": float(np.std(values))}

    def _features(self, network: nn.Module, videos: VideoSet) -> Tensor:
        """Return features `[num_videos, num_clips, d]`, or `[num_videos, 1, d]` where no score reads single clips."""
        features = videos.encoded(network, self.batch_size, _every if self._by_clip else _mean)
        return torch.from_numpy(features).to(videos.device)

    def _videos(self, dataset: Dataset, device: torch.device) -> VideoSet:
        everything: NDArray[np.int64] = np.arange(len(dataset))
        return VideoSet(dataset, everything, self.protocol, self._views(), device)

    def _views(self) -> Views:
        """Return the sizes and the draws of random clips."""
        return Views.of(self.height, self.width, self.crop_scale, self.flip, self.seed)

    @property
    def protocol(self) -> ClipProtocol:
        """The part of the settings that makes features."""
        clips = (self.num_clips, self.clip_frames)
        return ClipProtocol(*clips, self.height, self.width, self.pool, self.clip_stride)

    @property
    def _by_clip(self) -> bool:
        """Whether a score reads single clips."""
        return LINEAR in self.scores or FINE_TUNE in self.scores


def _every(features: Tensor) -> Tensor:
    return features


def _mean(features: Tensor) -> Tensor:
    return mean_feature(features)[:, None]
