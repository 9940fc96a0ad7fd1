"""A lower bound on epsilon from one training with many canaries (Steinke, Nasr & Jagielski 2023).

"Privacy Auditing with One (1) Training Run".
"""

from math import exp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least, within

_HIGHEST = 64.0  # no number of canaries that fits a machine can bound epsilon above this
_HALVINGS = 60


def one_run_bound(
    num_canaries: int, num_guesses: int, num_correct: int, delta: float = 0.0, confidence: float = 0.95
) -> float:
    """Return the epsilon that a training exceeds, given how many secret coins an attack has guessed right.

    Each canary was trained on or left out by a fair coin of its own; the attack abstains from all but `num_guesses` of
    them, a number that was fixed before it saw a score. Adjacent data sets differ by one canary that is there or not.

    Args:
        num_canaries: Coins that were thrown.
        num_guesses: Coins that the attack guesses.
        num_correct: Guesses that are right.
        delta: Of the guarantee that is tested.
        confidence: Probability that the bound holds, in (0, 1).

    Returns:
        The largest epsilon that is refuted, 0 where none is.

    Raises:
        ValueError: An argument is out of range.
    """
    at_least(1, num_canaries=num_canaries)
    within(0, num_canaries, num_guesses=num_guesses)
    within(0, num_guesses, num_correct=num_correct)
    within(0, 1, delta=delta, confidence=confidence)
    low, high = 0.0, _HIGHEST
    if not num_correct or _likelihood(low, num_canaries, num_guesses, num_correct, delta) > 1 - confidence:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _likelihood(middle, num_canaries, num_guesses, num_correct, delta) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def each_way(num_canaries: int) -> int:
    """Return how many canaries an attack guesses to be in, and as many to be out: a fifth, fixed before any score."""
    return num_canaries // 5


def guess(scores: NDArray[Any], included: NDArray[np.bool_], num_in: int, num_out: int) -> tuple[int, int]:
    """Guess the highest scores to be in and the lowest to be out, and count.

    Args:
        scores: `[num_canaries]`, higher for what looks trained on; of equal ones the first count as lower.
        included: `[num_canaries]` how the coins fell.
        num_in: Canaries that are guessed to be in, fixed in advance.
        num_out: Canaries that are guessed to be out, fixed in advance.

    Returns:
        The number of guesses, and of those that are right.

    Raises:
        ValueError: A score is not a number, the shapes differ, or there are more guesses than canaries.
    """
    if scores.shape != included.shape or np.isnan(scores).any():
        raise ValueError(f"scores must be {list(included.shape)} numbers, got {list(scores.shape)}")
    at_least(0, num_in=num_in, num_out=num_out)
    if num_in + num_out > len(scores):
        raise ValueError(f"num_in and num_out must be at most {len(scores)} in all, got {num_in + num_out}")
    order = np.argsort(scores, kind="stable")
    highest, lowest = order[len(order) - num_in :], order[:num_out]
    return num_in + num_out, int(included[highest].sum() + (~included[lowest]).sum())


def _likelihood(epsilon: float, num_canaries: int, num_guesses: int, num_correct: int, delta: float) -> float:
    """Return the most that `num_correct` or more right guesses can be probable where the guarantee holds."""
    from scipy.stats import binom

    # tail[j] is the probability that j or more of the guesses are right
    tail = binom.sf(np.arange(-1, num_correct), num_guesses, 1 / (1 + exp(-epsilon)))
    steps = np.arange(1, num_correct + 1)
    gains = (tail[num_correct - steps] - tail[num_correct]) / steps
    return float(tail[num_correct] + 2 * num_canaries * delta * gains.max())
