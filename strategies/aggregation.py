"""Streaming means of updates: memory does not grow with the cohort, and the order of sums is fixed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.arrays import Arrays

_BLOCK = 1 << 18  # two megabytes of float64: the fastest of 1 << 12 to 1 << 22


class WeightedMean:
    """A weighted mean of arrays, added one at a time.

    Floating-point tensors are summed in float64 and returned in their own dtype. Integer tensors (step counters) take
    the largest value seen: a mean of counters would not be an integer.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[Any]] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._weight = 0.0
        self._scratch = np.empty(_BLOCK)

    def add(self, arrays: Arrays, weight: float) -> None:
        """Add one update."""
        self._weight += weight
        for name, array in arrays.items():
            self._dtypes[name] = array.dtype
            if not np.issubdtype(array.dtype, np.floating):
                self._sums[name] = np.maximum(self._sums[name], array) if name in self._sums else array.copy()
                continue
            if name in self._sums:
                _add_scaled(self._sums[name].reshape(-1), array.reshape(-1), weight, self._scratch)
            else:
                self._sums[name] = np.asarray(np.multiply(array, weight, dtype=np.float64))

    def scale(self, factor: float) -> None:
        """Multiply every weight so far by `factor`."""
        self._weight *= factor
        for name, total in self._sums.items():
            if np.issubdtype(self._dtypes[name], np.floating):
                total *= factor

    def result(self) -> dict[str, NDArray[Any]]:
        """Return the mean.

        Raises:
            ValueError: No update was added, or the weights sum to zero.
        """
        if self._weight <= 0:
            raise ValueError("no update with a positive weight")
        return {name: self._divided(name, total) for name, total in self._sums.items()}

    def _divided(self, name: str, total: NDArray[Any]) -> NDArray[Any]:
        dtype = self._dtypes[name]
        if not np.issubdtype(dtype, np.floating):
            return total.astype(dtype)
        mean: NDArray[Any] = np.divide(total, self._weight, out=np.empty(total.shape, dtype), casting="same_kind")
        return mean


def _add_scaled(total: NDArray[np.float64], values: NDArray[Any], weight: float, scratch: NDArray[np.float64]) -> None:
    """Add weight * values to `total` in place, in blocks: converting first is faster than a mixed product."""
    for start in range(0, values.size, scratch.size):
        block = values[start : start + scratch.size]
        scaled = scratch[: block.size]
        np.copyto(scaled, block)
        scaled *= weight
        total[start : start + scratch.size] += scaled


class SoftmaxMean:
    """A mean with weights softmax(-loss), added one at a time; the largest weight so far is the unit."""

    def __init__(self) -> None:
        self._mean = WeightedMean()
        self._least = np.inf

    def add(self, arrays: Arrays, loss: float) -> None:
        """Add one update that reported `loss`."""
        if loss < self._least:
            self._mean.scale(float(np.exp(loss - self._least)))
            self._least = loss
        self._mean.add(arrays, float(np.exp(self._least - loss)))

    def result(self) -> dict[str, NDArray[Any]]:
        """Return the mean."""
        return self._mean.result()


def mix(first: Arrays, second: Arrays, share: float) -> dict[str, NDArray[Any]]:
    """Return share * first + (1 - share) * second; integer tensors are those of `first`."""
    return {
        name: (share * array.astype(np.float64) + (1.0 - share) * second[name]).astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in first.items()
    }
