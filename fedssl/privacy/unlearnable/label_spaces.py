"""What a learner wants to tell apart: the owner's classes, coarser ones, clusters, or nothing that images show."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.privacy.unlearnable.groups import by_cluster
from fedssl.seeding import generator


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """Labels of the training and the test images.

    Attributes:
        name: As tables have it.
        num_classes: Number of classes.
        train: `[n]` int64 in 0 to `num_classes` - 1.
        test: `[m]` int64 in 0 to `num_classes` - 1.

    Raises:
        ValueError: A label is out of range.
    """

    name: str
    num_classes: int
    train: NDArray[np.int64]
    test: NDArray[np.int64]

    def __post_init__(self) -> None:
        for labels in (self.train, self.test):
            if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
                span = f"{labels.min()} to {labels.max()}"
                raise ValueError(f"labels of {self.name} must be in 0 to {self.num_classes - 1}, got {span}")

    @property
    def chance(self) -> float:
        """Accuracy on the test images of always answering the most frequent class of the training images."""
        return float((self.test == np.bincount(self.train).argmax()).mean())


def superclasses(space: LabelSpace, classes: Sequence[str], groups: Sequence[Collection[str]]) -> LabelSpace:
    """Return the labels of groups of classes.

    Args:
        space: Labels of the classes.
        classes: Their names.
        groups: Names of the classes of each group, every class in one.

    Raises:
        ValueError: A class is in no group or in two, or a name is of no class.
    """
    if sorted(name for group in groups for name in group) != sorted(classes):
        raise ValueError(f"groups must have each of {', '.join(classes)} once, got {[sorted(g) for g in groups]}")
    group_of = np.array([next(i for i, group in enumerate(groups) if name in group) for name in classes])
    return LabelSpace(f"{len(groups)} superclasses", len(groups), group_of[space.train], group_of[space.test])


def clusters(train: NDArray[Any], test: NDArray[Any], num_clusters: int, seed: int) -> LabelSpace:
    """Return the clusters of the training images (k-means), and for each test image the one whose mean is nearest.

    Args:
        train: `[n, dim]` features of the clean training images; pixels will do.
        test: `[m, dim]` features of the test images.
        num_clusters: At most n.
        seed: Root of the starts.

    Raises:
        ValueError: There are more clusters than images, or fewer images that differ.
    """
    rows = by_cluster(train, num_clusters, seed)
    found = len(np.unique(rows))
    if found < num_clusters:
        raise ValueError(f"num_clusters must be at most the {found} that differ, got {num_clusters}")
    means = np.stack([train[rows == cluster].mean(axis=0) for cluster in range(num_clusters)])
    distances = np.stack([np.square(test - mean).sum(axis=1) for mean in means])
    return LabelSpace(f"{num_clusters} clusters", num_clusters, rows, distances.argmin(axis=0))


def relabelled(space: LabelSpace, seed: int) -> LabelSpace:
    """Return the labels dealt out anew: as many of each class, and nothing to learn; whatever is gained is an error."""
    train, test = (
        generator(seed, "relabelled", part).permutation(labels)
        for part, labels in (("train", space.train), ("test", space.test))
    )
    return LabelSpace("random labels", space.num_classes, train, test)
