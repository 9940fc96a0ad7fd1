"""Weighted nearest neighbours (Wu 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination")."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import above, at_least
from fedssl.evaluation.similarity import check_labelled, nearest


def knn_accuracy(
    bank: NDArray[Any],
    bank_labels: NDArray[np.int64],
    queries: NDArray[Any],
    query_labels: NDArray[np.int64],
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the share of queries whose class gets the most weight, exp(cosine / temperature), of the k nearest.

    Args:
        bank: `[num_items, d]`; a k above `num_items` takes them all.
        bank_labels: `[num_items]` in [0, num_classes).
        queries: `[num_queries, d]`.
        query_labels: `[num_queries]`.
        num_classes: Number of classes.
        k: Neighbours that vote.
        temperature: How much nearer ones count for more; a large one gives the majority.

    Returns:
        Accuracy in [0, 1]; of classes with equal weights the lower one wins.

    Raises:
        ValueError: If `k` or `temperature` is not positive, a label is out of range, or features and labels do not fit.
    """
    check_labelled("bank", bank, bank_labels)
    check_labelled("queries", queries, query_labels)
    at_least(1, k=k)
    above(0, temperature=temperature)
    if bank_labels.min() < 0 or bank_labels.max() >= num_classes:
        raise ValueError(f"bank_labels must be in [0, {num_classes}), got {bank_labels.min()} to {bank_labels.max()}")
    right = 0
    for chunk, items, cosines in nearest(queries, bank, k):
        # the nearest one weighs 1: no overflow, and the same ratios
        weights = np.exp((cosines - cosines[:, :1]) / temperature)
        scores = np.zeros((len(items), num_classes))
        np.add.at(scores, (np.arange(len(items))[:, None], bank_labels[items]), weights)
        right += int((scores.argmax(axis=1) == query_labels[chunk]).sum())
    return right / len(queries)
