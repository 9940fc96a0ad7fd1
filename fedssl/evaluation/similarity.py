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
    """
    columns = normalised(bank).T
    rows = normalised(queries)
    for first in range(0, len(rows), CHUNK):
        chunk = slice(first, min(first + CHUNK, len(rows)))
        cosines = rows[chunk] @ columns
        items = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        yield chunk, items, np.take_along_axis(cosines, items, axis=1)


def check_labelled(name: str, features: NDArray[Any], labels: NDArray[np.int64]) -> None:
    """Raise ValueError unless there is at least one row of `features`, each with a label."""
    if len(features) < 1:
        raise ValueError(f"{name} must have at least 1 row, got 0")
    if len(features) != len(labels):
        raise ValueError(f"{name} must have as many rows as labels, got {len(features)} and {len(labels)}")
