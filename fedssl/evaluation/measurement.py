"""One measurement of an encoder: its features are taken once, when a score first asks for them."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.data.dataset import Dataset, Splits
from fedssl.evaluation.alignment import alignment, uniformity
from fedssl.evaluation.calibration import calibration_error
from fedssl.evaluation.image_set import ImageSet, image_features
from fedssl.evaluation.knn import knn_accuracy
from fedssl.evaluation.linear_probe import LinearMap, standardisation
from fedssl.evaluation.rankme import rankme
from fedssl.evaluation.retrieval import recall_at
from fedssl.evaluation.risk import TERMS, risk
from fedssl.evaluation.similarity import class_cosines, spread
from fedssl.evaluation.subsets import at_most, labelled
from fedssl.privacy.audit.attack import attack
from fedssl.privacy.audit.membership import mean_cosine

if TYPE_CHECKING:
    from fedssl.evaluation.images import ImageEvaluation

_ATTACKED, _ATTACK_VIEWS = 2000, 10  # most training and test images whose membership is guessed, and views of each
FINE_TUNE = "fine-tune "
PIXELS = " (pixels)"
OWN = ("accuracy", "worst class")
"""Scores of the classifier that a model brings with it."""
SCORES: Mapping[str, tuple[str, ...]] = {
    **{
        name: (name,)
        for name in ("kNN", "kNN-200", "linear", "calibration", "RankMe", "alignment", "uniformity", "feature std")
    },
    **{name: (name,) for name in OWN},
    **{name + PIXELS: (name + PIXELS,) for name in ("kNN", "kNN-200", "linear")},
    "class cosines": ("cosine within classes", "cosine between classes"),
    "low-density": ("few labels", "low-density"),
    "risk": TERMS,
    "membership": ("membership AUC",),
    "retrieval": ("R@1", "R@5"),
}
"""The names of the numbers that a score is made of."""


class Measurement:
    """What the scores of one encoder share.

    Args:
        settings: What is measured, and how.
        encoder: Lies on `device`.
        splits: Training images are the bank, test images are asked about.
        device: Where images are encoded and classifiers are trained.
        classifier: The model's own, from features to classes; None where it has none.
    """

    def __init__(
        self,
        settings: "ImageEvaluation",
        encoder: nn.Module,
        splits: Splits,
        device: torch.device,
        classifier: nn.Module | None = None,
    ) -> None:
        self.settings = settings
        self.encoder = encoder
        self.splits = splits
        self.device = device
        self.classifier = classifier
        self.num_classes = len(splits.train.classes)

    def measure(self, score: str) -> dict[str, float]:
        """Return the numbers of `score`, by the names of `SCORES`."""
        if score.startswith(FINE_TUNE):
            return self._fine_tune(score)
        measures: Mapping[str, Callable[[], tuple[float, ...]]] = {
            "kNN": lambda: (self._knn(self.settings.knn_k, self.settings.knn_temperature),),
            "kNN-200": lambda: (self._knn(200, 0.1),),
            "linear": lambda: (self._probe.accuracy(*self._asked),),
            "calibration": lambda: (self._calibration(),),
            "low-density": self._low_density,
            "accuracy": lambda: (float(self._right.mean()),),
            "worst class": lambda: (
                min(self._right[self._test.labels == c].mean() for c in np.unique(self._test.labels)),
            ),
            "RankMe": lambda: (rankme(self._bank),),
            "alignment": lambda: (alignment(*self._views),),
            "uniformity": lambda: (float(np.mean([uniformity(view) for view in self._views])),),
            "class cosines": lambda: class_cosines(self._queries, self._test.labels),
            "feature std": lambda: (spread(self._queries),),
            "risk": self._risk,
            "membership": lambda: (self._membership(),),
            "retrieval": self._retrieval,
        }
        return dict(zip(SCORES[score], measures[score](), strict=True))

    @cached_property
    def _train(self) -> ImageSet:
        return self._images(self.splits.train, self.settings.max_train)

    @cached_property
    def _test(self) -> ImageSet:
        return self._images(self.splits.test, self.settings.max_test)

    def _images(self, dataset: Dataset, most: int | None) -> ImageSet:
        chosen = at_most(dataset.labels, most, self.settings.seed)
        return ImageSet(dataset, chosen, self.settings.views(), self.device)

    @cached_property
    def _bank(self) -> NDArray[np.float32]:
        return image_features(self.encoder, self._train, self.settings.batch_size)

    @cached_property
    def _queries(self) -> NDArray[np.float32]:
        return image_features(self.encoder, self._test, self.settings.batch_size)

    @cached_property
    def _right(self) -> NDArray[np.bool_]:
        """Whether the model's own classifier is right, for each test image."""
        if self.classifier is None:
            raise ValueError("the model has no classifier of its own")
        with torch.no_grad():
            answers = self.classifier(self._on_device(self._queries)).argmax(dim=1)
        return np.asarray(answers.cpu().numpy() == self._test.labels)

    @cached_property
    def _views(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features of two views of each test image."""
        size = self.settings.batch_size
        return (
            image_features(self.encoder, self._test, size, ("pair", 0)),
            image_features(self.encoder, self._test, size, ("pair", 1)),
        )

    @cached_property
    def _known(self) -> tuple[Tensor, Tensor]:
        """Features and labels of the training images."""
        return self._on_device(self._bank), self._on_device(self._train.labels)

    @cached_property
    def _asked(self) -> tuple[Tensor, Tensor]:
        """Features and labels of the test images."""
        return self._on_device(self._queries), self._on_device(self._test.labels)

    def _on_device(self, array: NDArray[np.float32] | NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    @cached_property
    def _probe(self) -> LinearMap:
        return self.settings.linear.fit(*self._known, self.num_classes, self.settings.seed, self._draw)

    def _draw(self, places: NDArray[np.int64], step: int) -> Tensor:
        images = self._train.subset(places)
        features = image_features(self.encoder, images, self.settings.batch_size, ("linear", step))
        return self._on_device(features)

    def _knn(self, k: int, temperature: float) -> float:
        labels = self._train.labels
        return knn_accuracy(self._bank, labels, self._queries, self._test.labels, self.num_classes, k, temperature)

    def _calibration(self) -> float:
        probabilities = self._probe(self._asked[0]).softmax(dim=1)
        return calibration_error(probabilities.cpu().numpy(), self._test.labels)

    def _low_density(self) -> tuple[float, float]:
        setting = self.settings.low_density
        features, labels = self._known
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[torch.from_numpy(labelled(self._train.labels, setting.labels, self.settings.seed))] = True
        chosen = chosen.to(self.device)
        maps = setting.fit(features[chosen], labels[chosen], features[~chosen], self.num_classes)
        alone, both = (each.accuracy(*self._asked) for each in maps)
        return alone, both

    def _risk(self) -> tuple[float, ...]:
        settings = self.settings
        approximation = settings.risk_approximation
        terms = risk(settings.linear, self._known, self._asked, self.num_classes, approximation, settings.seed)
        return tuple(terms.values())

    def _membership(self) -> float:
        """Return how well EncoderMI-T tells training from test images: 0.5 where views of both lie equally close."""
        settings = self.settings
        scores = []
        for dataset, most in ((self.splits.train, settings.max_train), (self.splits.test, settings.max_test)):
            images = self._images(dataset, min(most or _ATTACKED, _ATTACKED))
            names = [("membership", view) for view in range(_ATTACK_VIEWS)]
            views = [image_features(self.encoder, images, settings.batch_size, name) for name in names]
            scores.append(mean_cosine(np.stack(views, axis=1)))
        return attack(*scores, num_resamples=1).auc

    def _retrieval(self) -> tuple[float, ...]:
        labels = (self._test.labels, self._train.labels)
        return tuple(recall_at(self._queries, self._bank, *labels, (1, 5)).values())

    def _fine_tune(self, score: str) -> dict[str, float]:
        settings = self.settings
        everything = self._images(self.splits.train, None)
        standard = standardisation(self._known[0])
        amount = score.removeprefix(FINE_TUNE)
        values = settings.fine_tune.accuracies(self.encoder, everything, self._test, amount, standard, settings.seed)
        return {score: float(np.mean(values)), f"{score} std": float(np.std(values))}
