"""What the encoder of a run knows of the images of each client, those that were protected and those that were not."""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedssl.config import build
from fedssl.data.split import by_label
from fedssl.errors import ConfigError
from fedssl.evaluation.image_set import ImageSet, image_features
from fedssl.evaluation.images import ImageEvaluation
from fedssl.evaluation.knn import knn_accuracy
from fedssl.evaluation.transfer import fill, finished_configuration
from fedssl.models import bundle
from fedssl.report.rundir import ENCODER
from fedssl.seeding import generator
from fedssl.workspace import Workspace, open_workspace

UNSEEN = " unseen"
SCORES = ("kNN", "linear", f"kNN{UNSEEN}", f"linear{UNSEEN}")
_POOL = 0.5  # of the test images: the classifiers learn from it, the others are asked about


@dataclass(frozen=True, slots=True)
class Domain:
    """The images of one part of the partition, all of them clean.

    Attributes:
        part: Its number.
        owner: Whether its client was protected, or absent.
        examples: Images.
        trained: Accuracy in [0, 1] by the names of `SCORES`: on these images, and on test images of which each class
            counts for as much as it does among these.
        untrained: The same, of the encoder that the run began with.
    """

    part: int
    owner: bool
    examples: int
    trained: Mapping[str, float]
    untrained: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Probe:
    """What an encoder knows of each part of the partition."""

    domains: tuple[Domain, ...]

    @property
    def owners(self) -> frozenset[int]:
        """Parts whose clients were protected, or absent."""
        return frozenset(domain.part for domain in self.domains if domain.owner)

    @property
    def others(self) -> frozenset[int]:
        """All other parts."""
        return frozenset(domain.part for domain in self.domains) - self.owners

    def accuracy(self, score: str, parts: Collection[int], *, trained: bool = True) -> float | None:
        """Return the accuracy over the images of some parts; None where they have none."""
        asked = [domain for domain in self.domains if domain.part in parts and score in domain.trained]
        if not asked:
            return None
        values = [(domain.trained if trained else domain.untrained)[score] for domain in asked]
        return float(np.average(values, weights=[domain.examples for domain in asked]))

    def summary(self) -> dict[str, float]:
        """Return the accuracy on protected (or absent) images and on open ones, trained and untrained, by name."""
        values = {
            f"{'' if trained else 'untrained '}{name} {score}": self.accuracy(score, parts, trained=trained)
            for trained in (True, False)
            for name, parts in (("protected", self.owners), ("open", self.others))
            for score in SCORES
        }
        return {name: value for name, value in values.items() if value is not None}

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON values."""
        return {"summary": self.summary(), "clients": [asdict(domain) for domain in self.domains]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Probe":
        """Return the probe whose `to_dict` was `values`."""
        return cls(tuple(Domain(**domain) for domain in values["clients"]))


def probe_run(run_dir: Path, overrides: Sequence[str] = ()) -> Probe:
    """Ask the encoder of a finished run for the classes of all images that its partition deals out.

    Neighbours and linear probe learn from one half of the test images, which nobody protects.

    Args:
        run_dir: Directory of the run.
        overrides: Changes of the run's configuration, such as "evaluation=images".

    Raises:
        ConfigError: It is not the directory of a finished run, or its evaluation is not of images.
        DataError: The data cannot be used.
    """
    config = finished_configuration(run_dir, overrides)
    evaluation = build(config, "evaluation")
    if not isinstance(evaluation, ImageEvaluation):
        raise ConfigError("evaluation: must be images or images_full for a probe of what is protected")
    workspace = open_workspace(config)
    if workspace.parts is None:
        raise ConfigError("partition=on_device: the images are on devices; choose the partition of a simulation")
    bundle.load(workspace.model, workspace.initial)
    encoder = deepcopy(workspace.model[bundle.BACKBONE])
    questions = _Questions(workspace, evaluation)
    untrained = questions.ask(encoder)
    fill(encoder, run_dir / ENCODER)
    trained = questions.ask(encoder)
    changed = workspace.protector is not None or config.owners.absent
    named = workspace.owner_parts if changed else frozenset()
    return Probe(
        tuple(
            Domain(part, part in named, len(questions.holdings[part]), trained[part], untrained[part])
            for part in range(len(questions.holdings))
        )
    )


class _Questions:
    """The images that an encoder is asked about."""

    def __init__(self, workspace: Workspace, evaluation: ImageEvaluation) -> None:
        self._evaluation, self._device = evaluation, workspace.device
        train, test = workspace.splits.train, workspace.splits.test
        self.holdings = [workspace.holding(part) for part in range(workspace.num_parts)]
        self._own = ImageSet(train, np.concatenate(self.holdings), evaluation.views(), workspace.device)
        pool, asked = by_label(test.labels, _POOL, generator(evaluation.seed, "probe", "pool"))
        everything = ImageSet(test, np.arange(len(test)), evaluation.views(), workspace.device)
        self._asked, self._pool = everything.subset(asked), everything.subset(pool)
        self._num_classes = len(train.classes)

    def ask(self, encoder: nn.Module) -> list[dict[str, float]]:
        """Return the scores of each part; none where it has no images."""
        sets = (self._pool, self._own, self._asked)
        pool, own, asked = (image_features(encoder, each, self._evaluation.batch_size) for each in sets)
        score = self._scorer(pool)
        classes = np.unique(self._asked.labels)
        by_class = {
            label: score(asked[(own_class := self._asked.labels == label)], self._asked.labels[own_class])
            for label in classes
        }
        ends = np.cumsum([len(holding) for holding in self.holdings])[:-1]
        parts = zip(np.split(own, ends), np.split(self._own.labels, ends), strict=True)
        return [
            {**score(features, labels), **_weighted(by_class, labels)} if len(labels) else {}
            for features, labels in parts
        ]

    def _scorer(self, pool: NDArray[np.float32]) -> Callable[..., dict[str, float]]:
        """Return what scores features `[n, d]` whose labels are known, by a pool of features."""
        settings, known, classes = self._evaluation, self._pool.labels, self._num_classes
        pooled, truth = self._on_device(pool), self._on_device(known)
        linear = settings.linear.fit(pooled, truth, classes, settings.seed)
        votes = (settings.knn_k, settings.knn_temperature)

        def score(features: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
            right = linear.accuracy(self._on_device(features), self._on_device(labels))
            return {"kNN": knn_accuracy(pool, known, features, labels, classes, *votes), "linear": right}

        return score

    def _on_device(self, array: NDArray[np.float32] | NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def _weighted(by_class: Mapping[int, Mapping[str, float]], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the mean scores of classes, each as often as it is among `labels`; those without a score do not count."""
    classes, counts = np.unique(labels[np.isin(labels, list(by_class))], return_counts=True)
    names = ("kNN", "linear") if len(classes) else ()
    return {
        f"{name}{UNSEEN}": float(np.average([by_class[label][name] for label in classes], weights=counts))
        for name in names
    }
