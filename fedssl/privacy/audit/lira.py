"""The likelihood ratio attack with few shadow encoders (Carlini et al. 2022).

"Membership Inference Attacks From First Principles".
"""

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least

_ENOUGH = 64  # shadow encoders from which on each example has variances of its own
_LEAST_STD = 1e-12


def halves(num_shadows: int, num_examples: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return what each shadow encoder is trained on, `[num_shadows, num_examples]`: each example in exactly half.

    Raises:
        ValueError: The number of shadow encoders is odd, or below 2.
    """
    at_least(2, num_shadows=num_shadows)
    if num_shadows % 2:
        raise ValueError(f"num_shadows must be even, got {num_shadows}")
    ranks = rng.random((num_shadows, num_examples)).argsort(axis=0).argsort(axis=0)
    return np.asarray(ranks < num_shadows // 2)


def online(target: NDArray[Any], shadows: NDArray[Any], included: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the logarithm of how much more probable each score is of a member than of a non-member, `[n]`.

    Both are normal distributions, fitted to the shadow encoders that had the example and to those that had not. With
    fewer than 64 of them their deviations are taken over all examples.

    Args:
        target: `[n]` scores by the encoder that is attacked.
        shadows: `[num_shadows, n]` scores by the shadow encoders.
        included: `[num_shadows, n]` whether each was trained on the example.

    Raises:
        ValueError: The shapes differ, or an example is in fewer than two shadow encoders, or in all but fewer than two.
    """
    mean_in, std_in = _fit(target, shadows, included)
    mean_out, std_out = _fit(target, shadows, ~included)
    likely_in = -((target - mean_in) ** 2) / (2 * std_in**2) - np.log(std_in)
    likely_out = -((target - mean_out) ** 2) / (2 * std_out**2) - np.log(std_out)
    return np.asarray(likely_in - likely_out, dtype=np.float64)


def offline(target: NDArray[Any], shadows: NDArray[Any], included: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return by how many deviations each score is above those of non-members, `[n]`.

    This asks only shadow encoders that never saw the example, so that they can be trained before it is known.

    Args:
        target: `[n]` scores by the encoder that is attacked.
        shadows: `[num_shadows, n]` scores by the shadow encoders.
        included: `[num_shadows, n]` whether each was trained on the example.

    Raises:
        ValueError: The shapes differ, or an example is in all shadow encoders but fewer than two.
    """
    mean, std = _fit(target, shadows, ~included)
    return np.asarray((target - mean) / std, dtype=np.float64)


def _fit(
    target: NDArray[Any], shadows: NDArray[Any], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation `[n]` of each example's chosen scores."""
    if shadows.shape != chosen.shape or shadows.shape[1:] != target.shape:
        shapes = f"{list(target.shape)}, {list(shadows.shape)} and {list(chosen.shape)}"
        raise ValueError(f"target, shadows and included must be [n], [shadows, n] and [shadows, n], got {shapes}")
    counts = chosen.sum(axis=0)
    at_least(2, **{"shadows of an example": int(counts.min(initial=len(shadows)))})
    means = np.where(chosen, shadows, 0.0).sum(axis=0) / counts
    squares = np.where(chosen, (shadows - means) ** 2, 0.0)
    if len(shadows) >= _ENOUGH:
        stds = np.sqrt(squares.sum(axis=0) / (counts - 1))
    else:
        stds = np.full(len(target), sqrt(squares.sum() / (counts - 1).sum()))
    return means, np.maximum(stds, _LEAST_STD)
