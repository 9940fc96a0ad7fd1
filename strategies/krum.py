"""Krum and Multi-Krum: the updates with the nearest neighbours (Blanchard et al., NeurIPS 2017)."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.checks import at_least
from fedssl.errors import RunError
from fedssl.wire import LocalUpdate, TrainTask
from strategies.aggregation import WeightedMean
from strategies.base import Federated, Plan

_BLOCK = 1 << 16  # coordinates at a time: as float64, a few updates' worth of them stay in a processor's cache


class Krum(Federated):
    """The plain mean of the updates whose squared distances to their nearest neighbours sum to least.

    With n updates, of which f may be hostile, an update's score is the sum over its n - f - 2 nearest. Distances are
    over every floating tensor, running statistics among them, since a chosen update is taken whole. All updates of a
    round are held in memory, and time grows with the square of their number.

    Args:
        num_byzantine: Hostile clients that a round may hold (f); n must be at least 2 f + 3.
        num_selected: Updates that are averaged: 1 is Krum, more is Multi-Krum, up to n - f - 2 (Damaskinos et al.
            2019).
        share: Groups of tensors that are exchanged; None exchanges all.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, num_byzantine: int = 1, num_selected: int = 1, share: Collection[str] | None = None) -> None:
        at_least(0, num_byzantine=num_byzantine)
        at_least(1, num_selected=num_selected)
        super().__init__(share)
        self.num_byzantine = num_byzantine
        self.num_selected = num_selected

    def task(self, current: Arrays, round_number: int, plan: Plan) -> TrainTask:
        """Return the task.

        Raises:
            RunError: The cohort is too small, which is better known before it trains.
        """
        self._require(plan.cohort or plan.num_clients, round_number)
        return super().task(current, round_number, plan)

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean of the chosen updates.

        Raises:
            RunError: Too few clients answered.
        """
        arrays = [update.arrays for update in updates]
        self._require(len(arrays), round_number)
        scores = krum_scores(squared_distances(arrays), self.num_byzantine)
        mean = WeightedMean()
        for place in sorted(np.argsort(scores, kind="stable")[: self.num_selected]):
            mean.add(arrays[place], 1.0)
        return mean.result()

    def _require(self, number: int, round_number: int) -> None:
        f, m = self.num_byzantine, self.num_selected
        for key, value, needed in (("num_byzantine", f, 2 * f + 3), ("num_selected", m, m + f + 2)):
            if number < needed:
                raise RunError(
                    f"round {round_number}: strategy.{key}={value} needs at least {needed} updates, there are {number}"
                )


def squared_distances(updates: list[Arrays]) -> NDArray[np.float64]:
    """Return the squared L2 distances `[updates, updates]` over every floating tensor."""
    distances = np.zeros((len(updates), len(updates)))
    for name, array in updates[0].items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        for start in range(0, array.size, _BLOCK):
            rows = [arrays[name].reshape(-1)[start : start + _BLOCK] for arrays in updates]
            block = np.stack(rows, dtype=np.float64)
            for place in range(len(block) - 1):
                # Sums, not a matrix product: their bits do not depend on the number of threads.
                distances[place, place + 1 :] += np.square(block[place + 1 :] - block[place]).sum(axis=1)
    return distances + distances.T


def krum_scores(distances: NDArray[np.float64], num_byzantine: int) -> NDArray[np.float64]:
    """Return for each of n updates the sum of its n - num_byzantine - 2 smallest distances to others.

    Args:
        distances: `[n, n]` squared distances.
        num_byzantine: Updates that may be hostile.
    """
    others = distances + np.diag(np.full(len(distances), np.inf))
    nearest: NDArray[np.float64] = np.sort(others, axis=1)[:, : len(distances) - num_byzantine - 2].sum(axis=1)
    return nearest
