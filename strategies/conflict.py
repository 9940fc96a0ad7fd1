"""How far what clients with labels want is from what clients without want: the angle between their mean updates."""

from collections.abc import Sequence

import numpy as np

from fedssl.arrays import Arrays
from fedssl.models.bundle import BACKBONE
from fedssl.training.diagnostics import angle
from fedssl.wire import LocalUpdate
from strategies.aggregation import WeightedMean
from strategies.cohort import Roster


class Conflict:
    """Compares the backbone's updates of the two kinds of clients of a round; costs nothing where there is one kind.

    Args:
        current: The global arrays that the round begins with.
        roster: Knows who has labels.
        cohort: Clients of the round.
        buffers: Names that no optimizer trains, which are left out.
    """

    def __init__(self, current: Arrays, roster: Roster, cohort: Sequence[int], buffers: frozenset[str]) -> None:
        self._current = {
            name: array for name, array in current.items() if name.startswith(f"{BACKBONE}.") and name not in buffers
        }
        self._labelled = {partition for partition in cohort if roster.num_labelled(partition) > 0}
        self._means = {True: WeightedMean(), False: WeightedMean()}
        self._seen = {True: 0, False: 0}
        self._active = 0 < len(self._labelled) < len(cohort) and bool(self._current)

    def add(self, update: LocalUpdate) -> None:
        """Take an update."""
        if self._active:
            kind = update.partition in self._labelled
            self._means[kind].add({name: update.arrays[name] for name in self._current}, update.num_examples)
            self._seen[kind] += 1

    def metric(self) -> dict[str, float]:
        """Return the "update angle" in degrees between the two kinds, above 90 where averaging undoes both."""
        if not all(self._seen.values()):
            return {}
        first, second = (self._difference(kind) for kind in (True, False))
        product, *squares = (
            float(sum(np.sum(one[name] * other[name]) for name in self._current))
            for one, other in ((first, second), (first, first), (second, second))
        )
        return dict(zip(["update angle"], angle(product, *squares), strict=False))

    def _difference(self, kind: bool) -> Arrays:
        mean = self._means[kind].result()
        return {name: np.subtract(mean[name], array, dtype=np.float64) for name, array in self._current.items()}
