"""What an encoder of images is worth: neighbours, linear probes, few labels, and numbers that need no labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from fedssl.checks import above, at_least, within
from fedssl.data.dataset import Splits
from fedssl.evaluation.fine_tune import FineTune
from fedssl.evaluation.image_set import Views
from fedssl.evaluation.linear_probe import LinearProbe
from fedssl.evaluation.low_density import LowDensity
from fedssl.evaluation.measurement import FINE_TUNE, OWN, PIXELS, SCORES, Measurement
from fedssl.evaluation.raw_pixels import RawPixels
from fedssl.evaluation.subsets import is_amount
from fedssl.models.encoder import Encoder

_PIXEL_SCORES: dict["ImageEvaluation", tuple[Splits, dict[str, float]]] = {}
"""Scores of raw pixels on the data that was evaluated last: they do not change between rounds. A cache to drop."""


@dataclass(frozen=True, slots=True)
class ImageEvaluation:
    """Scores of an encoder on training and test images; each choice of images and each view is drawn by name.

    Args:
        height: Height the encoder sees, in pixels.
        width: Width the encoder sees, in pixels.
        scores: What is measured, of "kNN", "kNN-200", "linear", "calibration", "fine-tune N%", "fine-tune N per class",
            "low-density", "RankMe", "alignment", "uniformity", "class cosines", "feature std", "risk",
            "retrieval", whether a training image of a test image's class is among the nearest, "membership", how well
            the closeness of an image's views tells training from test images (EncoderMI-T, Liu et al. 2021), and, for
            raw pixels in place of features, "kNN (pixels)", "kNN-200 (pixels)",
            "linear (pixels)"; of a model that brings its own classifier "accuracy" and "worst class", the least
            accuracy of a class.
        max_train: Most training images that features are taken of; None takes all. Fine-tuning chooses among all.
        max_test: Most test images; None takes all.
        batch_size: Images that the encoder takes at once.
        seed: Root of what is random; runs that are compared need the same one.
        knn_k: Neighbours that vote for "kNN"; "kNN-200" takes 200 at temperature 0.1.
        knn_temperature: Temperature of the votes.
        crop_scale: Least and greatest share of the area that a view keeps.
        flip: Probability that a view is flipped left and right.
        linear: The linear probe.
        fine_tune: How a copy of the encoder learns from labels.
        low_density: The separator that uses features without labels.
        risk_approximation: Training error of a supervised network of the encoder's family, for "risk"; 0 leaves that
            term in the usability.

    Raises:
        ValueError: If an argument is out of range.
    """

    height: int
    width: int
    scores: Sequence[str] = ("kNN", "linear", "RankMe")
    max_train: int | None = None
    max_test: int | None = None
    batch_size: int = 256
    seed: int = 0
    knn_k: int = 20
    knn_temperature: float = 0.07
    crop_scale: Sequence[float] = (0.2, 1.0)
    flip: float = 0.5
    linear: LinearProbe = field(default_factory=LinearProbe)
    fine_tune: FineTune = field(default_factory=FineTune)
    low_density: LowDensity = field(default_factory=LowDensity)
    risk_approximation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scores", "crop_scale"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self.views()
        at_least(1, batch_size=self.batch_size, knn_k=self.knn_k, max_train=self.max_train, max_test=self.max_test)
        above(0, knn_temperature=self.knn_temperature)
        within(0, 1, risk_approximation=self.risk_approximation)
        self._check_scores()

    def _check_scores(self) -> None:
        if not self.scores or len(set(self.scores)) < len(self.scores):
            raise ValueError(f"scores must be different names, at least one, got {list(self.scores)}")
        for score in self.scores:
            if score not in SCORES and not (score.startswith(FINE_TUNE) and is_amount(score.removeprefix(FINE_TUNE))):
                allowed = ", ".join((*SCORES, f"{FINE_TUNE}N%", f"{FINE_TUNE}N per class"))
                raise ValueError(f"scores must be among {allowed}, got {score}")
        if "calibration" in self.scores and self.linear.mode == "ridge":
            raise ValueError("linear.mode must be lbfgs or sgd for the score calibration, got ridge")

    def views(self) -> Views:
        """Return the sizes and the draws."""
        return Views.of(self.height, self.width, self.crop_scale, self.flip, self.seed)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores, in order."""
        return tuple(name for score in self.scores for name in self._names(score))

    def _names(self, score: str) -> tuple[str, ...]:
        if score.startswith(FINE_TUNE):
            return (score, f"{score} std") if self.fine_tune.repeats > 1 else (score,)
        return SCORES[score]

    @property
    def classifies(self) -> bool:
        """Whether a score needs the model's own classifier."""
        return any(score in OWN for score in self.scores)

    def __call__(
        self, encoder: Encoder, splits: Splits, device: torch.device, classifier: nn.Module | None = None
    ) -> dict[str, float]:
        """Return the scores by the names of `score_names`.

        Args:
            encoder: Lies on `device`; neither its tensors nor its modes are changed.
            splits: Training images are the bank, test images are asked about.
            device: Where images are encoded and classifiers are trained.
            classifier: The model's own, if it has one.

        Raises:
            DataError: A split is empty, or its examples are not images.
            FloatingPointError: A feature or the loss of a classifier is not a finite number.
        """
        learned = Measurement(self, encoder, splits, device, classifier)
        values: dict[str, float] = {}
        for score in self.scores:
            values |= self._pixels(splits, device) if score.endswith(PIXELS) else learned.measure(score)
        return {name: values[name] for name in self.score_names}

    def _pixels(self, splits: Splits, device: torch.device) -> dict[str, float]:
        """Return the scores of raw pixels, measured once for one data set."""
        known = _PIXEL_SCORES.get(self)
        if known is not None and known[0] is splits:
            return known[1]
        measured = Measurement(self, RawPixels(), splits, device)
        scores = {
            name: value
            for score in self.scores
            if score.endswith(PIXELS)
            for name, value in zip(SCORES[score], measured.measure(score.removesuffix(PIXELS)).values(), strict=True)
        }
        _PIXEL_SCORES.clear()
        _PIXEL_SCORES[self] = (splits, scores)
        return scores
