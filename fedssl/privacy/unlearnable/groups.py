"""Which pattern an example gets: one of its own, that of its class, or that of its cluster (k-means, Lloyd 1982)."""

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import within
from fedssl.data.arrays import ArrayDataset
from fedssl.data.pixels import thumbnails
from fedssl.privacy.unlearnable.protector import Owned
from fedssl.seeding import derive

Per = Literal["sample", "class", "cluster"]
PER: tuple[Per, ...] = ("sample", "class", "cluster")
Shared = Literal["class", "cluster"]
SHARED: tuple[Shared, ...] = ("class", "cluster")
_STARTS = 4


def rows_of(owned: Owned, per: Per, num_clusters: int) -> tuple[NDArray[np.int64], int]:
    """Return the pattern of each image `[num_images]`, and how many patterns there are.

    Args:
        owned: The images; clusters are those of small copies of them.
        per: What shares a pattern.
        num_clusters: Of `per="cluster"`; not read otherwise.

    Raises:
        ValueError: A class is missing, or there are more clusters than images.
    """
    if per == "sample":
        return by_sample(len(owned.images)), len(owned.images)
    if per == "class":
        return by_class(owned), owned.num_classes
    return by_cluster(small_pixels(owned), num_clusters, owned.seed), num_clusters


def by_sample(n: int) -> NDArray[np.int64]:
    """Return `[n]` rows: a pattern for each of `n` examples."""
    return np.arange(n, dtype=np.int64)


def by_class(owned: Owned) -> NDArray[np.int64]:
    """Return `[num_images]` rows: the class of each image.

    Raises:
        ValueError: An image has none.
    """
    known = int((owned.labels >= 0).sum())
    if known < len(owned.images):
        raise ValueError(f"labels must be known of all {len(owned.images)} images, got {known}")
    return owned.labels


def by_cluster(features: NDArray[Any], num_clusters: int, seed: int) -> NDArray[np.int64]:
    """Return `[n]` rows: clusters of features by k-means, the best of a few starts.

    Args:
        features: `[n, dim]` floats, compared by Euclidean distance.
        num_clusters: At most n; some stay empty where fewer features differ.
        seed: Root of the starts.

    Raises:
        ValueError: There are more clusters than features.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    within(1, len(features), num_clusters=num_clusters)
    kmeans = KMeans(num_clusters, n_init=_STARTS, random_state=derive(seed, "unlearnable", "clusters") % 2**32)
    with threadpool_limits(1), warnings.catch_warnings():  # sums, and with them clusters, depend on threads
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer features that differ than clusters
        return np.asarray(kmeans.fit_predict(features), dtype=np.int64)


def small_pixels(owned: Owned) -> NDArray[np.float32]:
    """Return small copies of the images as features `[num_images, dim]` in 0 to 1."""
    number = len(owned.images)
    unlabelled = ArrayDataset(np.zeros(number, dtype=np.int64), ("",), ("",) * number, owned.images[:, None])
    return thumbnails(unlabelled)
