"""L-DAWA: each layer of an update counts by its angle to the global one (Rehman et al., ICCV 2023)."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.checks import at_least
from fedssl.wire import LocalUpdate
from strategies.aggregation import WeightedMean
from strategies.averaging import Averaging


class LDAWA(Averaging):
    """The plain mean of `cosine * tensor`, with the cosine between a client's tensor and the current global one.

    As published the cosines are not normalised, so that norms shrink in every round, and nothing is weighted by
    examples. Running statistics and tensors without dimensions take the plain mean, integers the maximum. Where one of
    the two tensors is all zeros there is no angle, and its cosine is taken as 1. Memory does not grow with the cohort.

    Args:
        share: Groups of tensors that are exchanged; None exchanges all.
        warmup_rounds: First rounds that are averaged by examples, as FedAvg does.
        normalize: Divide by the sum of the cosines' sizes instead of the number of clients, which keeps norms.
        reference_compat: Multiply running statistics by their cosines too, as the authors' code does, though a mean or
            a variance is no direction.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        share: Collection[str] | None = None,
        warmup_rounds: int = 3,
        normalize: bool = False,
        reference_compat: bool = False,
    ) -> None:
        at_least(0, warmup_rounds=warmup_rounds)
        super().__init__(share)
        self.warmup_rounds = warmup_rounds
        self.normalize = normalize
        self.reference_compat = reference_compat

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean by examples in the first rounds, by cosines afterwards."""
        if round_number <= self.warmup_rounds:
            return super().merge(current, updates, round_number)
        sizes = {name: 0.0 for name, array in current.items() if self._is_direction(name, array)}
        mean, count = WeightedMean(), 0
        for update in updates:
            cosines = {name: cosine(update.arrays[name], current[name]) for name in sizes}
            mean.add({name: _times(array, cosines.get(name)) for name, array in update.arrays.items()}, 1.0)
            sizes = {name: size + abs(cosines[name]) for name, size in sizes.items()}
            count += 1
        merged = mean.result()
        if not self.normalize:
            return merged
        factors = {name: count / size for name, size in sizes.items() if size > 0}
        return {name: _times(array, factors.get(name)) for name, array in merged.items()}

    def _is_direction(self, name: str, array: NDArray[Any]) -> bool:
        is_statistic = name in self.buffers and not self.reference_compat
        return np.issubdtype(array.dtype, np.floating) and array.ndim > 0 and not is_statistic


def cosine(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the cosine between two tensors of one shape, at most 1, and 1 when one of them is all zeros."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    # Sums, not dot products: their bits do not depend on the number of threads.
    norms = np.sqrt(np.square(first).sum()) * np.sqrt(np.square(second).sum())
    return min(float((first * second).sum() / norms), 1.0) if norms > 0 else 1.0


def _times(array: NDArray[Any], factor: float | None) -> NDArray[Any]:
    return array if factor is None else np.asarray(array * factor, array.dtype)
