"""Clients that see another style of picture each: brightness, contrast, colour cast or sharpness (no pixel changes)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.dataset import Dataset
from fedssl.data.partition import Parts
from fedssl.data.partition_sizes import check_enough
from fedssl.data.pixels import STATISTICS, styles
from fedssl.seeding import generator


@dataclass(frozen=True, slots=True)
class FeatureSkew:
    """Divide the examples by measures of their style, so that inputs differ between clients and labels need not.

    This is the feature distribution skew of Kairouz 2021, "Advances and Open Problems in Federated Learning", made by
    choosing pictures. The clients halve the examples again and again along the measure that still differs most, as
    the cells of a k-d tree: with one measure they are slices of its order, lowest first. Sizes differ by at most one.

    Attributes:
        num_clients: Number of clients, at least 1.
        statistics: Which of brightness, contrast, colour and sharpness count.
        within_class: Compare each example with its own class only, so that labels stay about evenly mixed.
        mix: Part of the examples, 0 to 1, that is dealt out at random instead; 1 is IID.
    """

    num_clients: int
    statistics: Sequence[str] = STATISTICS
    within_class: bool = True
    mix: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, num_clients=self.num_clients)
        names = ", ".join(map(str, self.statistics))
        if not self.statistics or not set(self.statistics) <= set(STATISTICS):
            raise ValueError(f"statistics must be some of {', '.join(STATISTICS)}, got {names or 'none'}")
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix must be 0 to 1, got {self.mix}")

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the sorted example indices of each client; ValueError if the examples do not differ in style."""
        check_enough(len(dataset), self.num_clients)
        ranks = self._ranks(dataset)
        rng = generator(seed, "partition", "feature_skew")
        owners = np.empty(len(dataset), dtype=np.int64)
        for client, part in enumerate(_cells(rng.permutation(len(dataset)), ranks, self.num_clients)):
            owners[part] = client
        mixed = rng.permutation(len(dataset))[: round(self.mix * len(dataset))]
        owners[mixed] = owners[rng.permutation(mixed)]
        return [np.flatnonzero(owners == client) for client in range(self.num_clients)]

    def _ranks(self, dataset: Dataset) -> NDArray[np.float64]:
        """Return the rank of each example in every measure, `[num_examples, measures]` in 0 to 1."""
        from scipy.stats import rankdata

        measured = styles(dataset)
        values = np.concatenate([measured[name] for name in self.statistics], axis=1)
        if not np.ptp(values, axis=0).any() and len(dataset) > 1:
            names = ", ".join(self.statistics)
            raise ValueError(f"partition.statistics must name one in which examples differ, got {names}")
        groups = dataset.labels if self.within_class else np.zeros(len(dataset), dtype=np.int64)
        ranks = np.empty_like(values)
        for group in np.unique(groups):
            members = groups == group
            ranks[members] = (rankdata(values[members], axis=0) - 0.5) / members.sum()
        return ranks


def _cells(members: NDArray[np.int64], ranks: NDArray[np.float64], num_cells: int) -> Iterator[NDArray[np.int64]]:
    """Yield `num_cells` parts of `members` whose sizes differ by at most one; ties keep the order of `members`."""
    if num_cells == 1:
        yield members
        return
    left = num_cells // 2
    axis = int(np.argmax(ranks[members].var(axis=0)))
    order = members[np.argsort(ranks[members, axis], kind="stable")]
    cut = len(order) * left // num_cells
    yield from _cells(order[:cut], ranks, left)
    yield from _cells(order[cut:], ranks, num_cells - left)
