"""Robust means of every coordinate: the median and the trimmed mean (Yin et al., ICML 2018)."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.errors import RunError
from fedssl.wire import LocalUpdate
from strategies.base import Federated


class Median(Federated):
    """The median of every coordinate over the updates; with an even number of them the mean of the middle two.

    Every update counts the same. Integers take the maximum. All updates of a round are held in memory.

    Args:
        share: Groups of tensors that are exchanged; None exchanges all.
    """

    def __init__(self, share: Collection[str] | None = None) -> None:
        super().__init__(share)

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the median of the updates."""
        return _by_coordinate([update.arrays for update in updates], lambda stacked: np.median(stacked, axis=0))


class TrimmedMean(Federated):
    """The mean of every coordinate without its largest and its smallest values.

    Every update counts the same. Integers take the maximum. All updates of a round are held in memory.

    Args:
        trim: Share of the updates that is left out at either end, from 0 to below 0.5, rounded down to whole updates.
        share: Groups of tensors that are exchanged; None exchanges all.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, trim: float = 0.1, share: Collection[str] | None = None) -> None:
        if not 0 <= trim < 0.5:
            raise ValueError(f"trim must be from 0 to below 0.5, got {trim}")
        super().__init__(share)
        self.trim = float(trim)

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the trimmed mean of the updates.

        Raises:
            RunError: There are so few updates that none would be left out.
        """
        arrays = [update.arrays for update in updates]
        cut = int(self.trim * len(arrays) + 1e-9)  # 0.29 * 100 is a little less than 29
        if self.trim > 0 and cut == 0:
            needed = int(np.ceil(1 / self.trim - 1e-9))
            raise RunError(
                f"round {round_number}: strategy.trim={self.trim} needs at least {needed} updates, got {len(arrays)}"
            )
        return _by_coordinate(arrays, lambda stacked: np.sort(stacked, axis=0)[cut : len(arrays) - cut].mean(axis=0))


def _by_coordinate(
    updates: list[Arrays], rule: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> dict[str, NDArray[Any]]:
    """Apply a rule for `[updates, ...]` to each floating tensor, and the maximum to the others."""

    def merged(name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        if not np.issubdtype(dtype, np.floating):
            return np.asarray(np.stack([arrays[name] for arrays in updates]).max(axis=0))
        return np.asarray(rule(np.stack([arrays[name] for arrays in updates], dtype=np.float64)), dtype)

    return {name: merged(name, array.dtype) for name, array in updates[0].items()}
