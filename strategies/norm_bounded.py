"""The mean of updates whose differences are scaled into a ball (Sun et al. 2019).

"Can You Really Backdoor Federated Learning?": a hostile client can only push as far as the ball reaches.
"""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.checks import above
from fedssl.wire import LocalUpdate
from strategies.aggregation import WeightedMean
from strategies.base import Federated


class NormBounded(Federated):
    """FedAvg of the updates, each moved towards the current model until its distance is at most `max_norm`.

    The distance is over parameters; buffers neither count nor are changed. Weights are the numbers of examples that
    the clients report. Memory does not grow with the cohort.

    Args:
        max_norm: Greatest L2 distance of an update to the current model.
        share: Groups of tensors that are exchanged; None exchanges all.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, max_norm: float = 1.0, share: Collection[str] | None = None) -> None:
        above(0, max_norm=max_norm)
        super().__init__(share)
        self.max_norm = float(max_norm)

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean of the bounded updates, weighted by examples."""
        mean = WeightedMean()
        for update in updates:
            mean.add(self._bounded(update.arrays, current), update.num_examples)
        return mean.result()

    def _bounded(self, arrays: Arrays, current: Arrays) -> Arrays:
        names = [name for name in arrays if name not in self.buffers]
        squares = [np.square(np.subtract(arrays[name], current[name], dtype=np.float64)).sum() for name in names]
        norm = float(np.sqrt(np.sum(squares)))
        if norm <= self.max_norm:
            return arrays
        share = self.max_norm / norm
        return {**arrays, **{name: _between(current[name], arrays[name], share) for name in names}}


def _between(start: NDArray[Any], end: NDArray[Any], share: float) -> NDArray[Any]:
    """Return the point that lies `share` of the way from `start` to `end`."""
    return np.asarray(start + share * np.subtract(end, start, dtype=np.float64), end.dtype)
