"""The nearest neighbours by cosine, in chunks of queries."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1024
LEAST_NORM = 1e-12


def normalised(features: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rows of `features` `[n, d]` at unit length; a row of zeros stays so."""
    rows = np.asarray(features, dtype=np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), LEAST_NORM), dtype=np.float64)


def nearest(
    queries: NDArray[Any], bank: NDArray[Any], k: int
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield the `k` nearest items of `bank`, nearest first, for one chunk of queries after another.

    Args:
        queries: `[num_queries, d]`.
        bank: `[num_items, d]`.
        k: Neighbours; at most `num_items` are given. Equal ones come in the order of the bank.

    Yields:
        The chunk's place in `queries`, the items `[chunk, k]` and their cosines `[chunk, k]`.

    Raises:
        FloatingPointError: A feature is not a finite number.
    """
    columns = normalised(bank).T
    rows = normalised(queries)
    if not np.isfinite(columns).all() or not np.isfinite(rows).all():
        raise FloatingPointError("features are not all finite numbers")
    for first in range(0, len(rows), CHUNK):
        chunk = slice(first, min(first + CHUNK, len(rows)))
        cosines = rows[chunk] @ columns
        items = _largest(cosines, k)
        yield chunk, items, np.take_along_axis(cosines, items, axis=1)


def _largest(values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the columns `[n, k]` of the largest of each row, largest first, of equal ones the first; no full sort."""
    if k < values.shape[1]:
        least = -np.partition(-values, k - 1, axis=1)[:, k - 1 : k]
        equal = values == least
        room = k - (values > least).sum(axis=1, keepdims=True)
        kept = (values > least) | (equal & (np.cumsum(equal, axis=1) <= room))
        columns = np.nonzero(kept)[1].reshape(len(values), k)
    else:
        columns = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    order = np.argsort(-np.take_along_axis(values, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def check_labelled(name: str, features: NDArray[Any], labels: NDArray[np.int64]) -> None:
    """Raise ValueError unless there is at least one row of `features`, each with a label."""
    if len(features) < 1:
        raise ValueError(f"{name} must have at least 1 row, got 0")
    if len(features) != len(labels):
        raise ValueError(f"{name} must have as many rows as labels, got {len(features)} and {len(labels)}")


def class_cosines(features: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean cosine of two examples of one class, and of two examples of different classes.

    Args:
        features: `[n, d]` of any length.
        labels: `[n]`.

    Returns:
        The two means; 0 where there is no such pair.

    Raises:
        ValueError: There is no row, or rows and labels differ in number.
    """
    check_labelled("features", features, labels)
    rows = normalised(features)
    sums = np.zeros((int(labels.max()) + 1, rows.shape[1]))
    np.add.at(sums, labels, rows)
    own = float(np.square(rows).sum())
    within = float(np.square(sums).sum()) - own
    between = float(np.square(rows.sum(axis=0)).sum()) - own - within
    counts = np.bincount(labels)
    num_within = int((counts * (counts - 1)).sum())
    num_between = len(rows) * (len(rows) - 1) - num_within
    return within / max(1, num_within), between / max(1, num_between)


def spread(features: NDArray[Any]) -> float:
    """Return the mean standard deviation of a dimension of `features` `[n, d]` at unit length.

    It is about the root of 1 / d for directions that point everywhere, and 0 when all are the same.
    """
    return float(normalised(features).std(axis=0).mean())
