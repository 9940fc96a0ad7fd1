"""Alignment and uniformity on the sphere.

Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere".
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import above
from fedssl.evaluation.similarity import CHUNK, normalised


def alignment(first: NDArray[Any], second: NDArray[Any], alpha: float = 2.0) -> float:
    """Return the mean distance, to the power `alpha`, of two views of an example; 0 is best.

    Args:
        first: `[n, d]` features of any length; they are normalised here.
        second: `[n, d]` features of other views of the same examples.
        alpha: Power of the distance; 2 gives 2 - 2 times the mean cosine.

    Raises:
        ValueError: The shapes differ, there is no row, or `alpha` is not positive.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(f"first and second must have one shape and a row, got {first.shape} and {second.shape}")
    above(0, alpha=alpha)
    distances = np.linalg.norm(normalised(first) - normalised(second), axis=1)
    return float(np.mean(distances**alpha))


def uniformity(features: NDArray[Any], t: float = 2.0) -> float:
    """Return the logarithm of the mean of exp(-t distance²) over pairs of examples; the lower, the more spread out.

    Args:
        features: `[n, d]` of any length; they are normalised here.
        t: Sharpness.

    Returns:
        A number in [-4 t, 0].

    Raises:
        ValueError: There are fewer than two rows, or `t` is not positive.
    """
    if len(features) < 2:
        raise ValueError(f"features must have at least 2 rows, got {len(features)}")
    above(0, t=t)
    rows = normalised(features)
    squares = np.square(rows).sum(axis=1)
    total = 0.0
    for first in range(0, len(rows), CHUNK):
        part = slice(first, first + CHUNK)
        distances = np.maximum(0.0, squares[part, None] + squares - 2 * rows[part] @ rows.T)
        later = np.arange(len(rows)) > np.arange(len(rows))[part, None]
        total += float(np.exp(-t * distances)[later].sum())
    return math.log(total / (len(rows) * (len(rows) - 1) / 2))
