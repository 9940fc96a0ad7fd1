"""SSLMem: how much better a network aligns the views of an example because it was trained on it (Wang et al. 2024).

"Memorization in Self-Supervised Learning Improves Downstream Generalization".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.evaluation.similarity import LEAST_NORM

Curve = NDArray[np.float64]


def pairs(features: NDArray[Any], *, normalise: bool = True) -> Curve:
    """Return the mean distance of two views over all pairs of views of each example, `[n]`; 0 is aligned.

    Args:
        features: `[n, views, dim]`.
        normalise: Whether features are taken at unit length.

    Raises:
        ValueError: There are fewer than two views.
    """
    if features.ndim != 3 or features.shape[1] < 2:
        raise ValueError(f"features must be [n, at least 2 views, dim], got {list(features.shape)}")
    rows = _rows(features, normalise)
    every = combinations(range(rows.shape[1]), 2)
    return np.asarray(np.mean([_distances(rows[:, one], rows[:, other]) for one, other in every], axis=0))


def anchor(originals: NDArray[Any], features: NDArray[Any], *, normalise: bool = True) -> Curve:
    """Return the mean distance of an example's views from the example itself, `[n]`.

    Args:
        originals: `[n, dim]` features of the examples as they are.
        features: `[n, views, dim]` features of their views.
        normalise: Whether features are taken at unit length.

    Raises:
        ValueError: The shapes do not fit.
    """
    if features.ndim != 3 or originals.shape != features[:, 0].shape:
        raise ValueError(f"features must be [n, views, dim] of {list(originals.shape)}, got {list(features.shape)}")
    return np.asarray(_distances(_rows(originals, normalise)[:, None], _rows(features, normalise)).mean(axis=1))


def memorisation(with_it: Sequence[Curve], without: Sequence[Curve]) -> Curve:
    """Return how much less aligned the networks are that never saw the examples, `[n]`; positive is memorised.

    Args:
        with_it: Alignment `[n]` by each network that was trained on the examples, one a seed.
        without: Alignment `[n]` by each network that was trained on others in their place.
    """
    return np.asarray(np.mean(without, axis=0) - np.mean(with_it, axis=0))


@dataclass(frozen=True, slots=True)
class Memorisation:
    """The scores of one group of examples.

    Attributes:
        raw: `[n]` in units of distance.
        normalised: `[n]` in units of the range of the raw scores over all groups; outliers set that range.
        mean: Of the raw scores.
        top_mean: Of the highest hundredth of the raw scores, at least one.
        ks_statistic: Greatest distance of the distribution from that of the external group (Kolmogorov & Smirnov).
        ks_p_value: Probability of as great a distance where both are the same; two-sided.
    """

    raw: Curve
    normalised: Curve
    mean: float
    top_mean: float
    ks_statistic: float
    ks_p_value: float


EXTERNAL = "external"


def report(raw: Mapping[str, Curve]) -> dict[str, Memorisation]:
    """Return what the scores of each group come to.

    Args:
        raw: Scores `[n]` of each group, with "external" for examples that no network saw; usual ones are "candidate"
            for those that the first network alone saw, "independent" for those that the second alone saw, whose
            scores are negative where they are memorised, and "shared" for those that both saw.

    Raises:
        ValueError: There is no external group, or one is empty.
    """
    if EXTERNAL not in raw or not all(len(scores) for scores in raw.values()):
        raise ValueError(f"raw must have a group {EXTERNAL} and no empty one, got {', '.join(raw)}")
    everything = np.concatenate(list(raw.values()))
    spread = float(np.ptp(everything)) or 1.0
    return {name: _group(scores, spread, raw[EXTERNAL]) for name, scores in raw.items()}


def _group(raw: Curve, spread: float, external: Curve) -> Memorisation:
    from scipy.stats import ks_2samp

    test = ks_2samp(raw, external)
    top = np.sort(raw)[-ceil(len(raw) / 100) :]
    numbers = (raw.mean(), top.mean(), test.statistic, test.pvalue)
    return Memorisation(raw, raw / spread, *(float(number) for number in numbers))


def _rows(features: NDArray[Any], normalise: bool) -> NDArray[np.float64]:
    rows = np.asarray(features, dtype=np.float64)
    if not normalise:
        return rows
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), LEAST_NORM))


def _distances(one: NDArray[np.float64], other: NDArray[np.float64]) -> Curve:
    return np.asarray(np.linalg.norm(one - other, axis=-1))
