"""Retrieval: is a video of the query's class among the nearest (Xu 2019)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.evaluation.similarity import check_labelled, nearest


def recall_at(
    queries: NDArray[Any],
    gallery: NDArray[Any],
    query_labels: NDArray[np.int64],
    gallery_labels: NDArray[np.int64],
    ks: Sequence[int],
) -> dict[int, float]:
    """Return, for each k, the share of queries with an item of their class among the k nearest by cosine.

    Args:
        queries: `[num_queries, d]`.
        gallery: `[num_items, d]`; a k above `num_items` takes them all.
        query_labels: `[num_queries]`.
        gallery_labels: `[num_items]`.
        ks: Numbers of neighbours.

    Returns:
        Recall in [0, 1] by k.

    Raises:
        ValueError: If there is no k, a k is below 1, or features and labels do not fit.
    """
    check_labelled("queries", queries, query_labels)
    check_labelled("gallery", gallery, gallery_labels)
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be numbers of at least 1, got {list(ks)}")
    hits = dict.fromkeys(ks, 0)
    for chunk, items, _ in nearest(queries, gallery, max(ks)):
        same = gallery_labels[items] == query_labels[chunk, None]
        for k in hits:
            hits[k] += int(same[:, :k].any(axis=1).sum())
    return {k: count / len(queries) for k, count in hits.items()}
