"""Partitions by shards of sorted labels and by unequal sizes."""

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.dataset import Dataset
from fedssl.data.partition import Parts
from fedssl.data.partition_sizes import apportion, check_enough
from fedssl.seeding import generator


@dataclass(frozen=True, slots=True)
class Shards:
    """Sort by label, cut into equal shards and deal every client the same number of them.

    This is the "pathological" division of McMahan 2017, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data". Sizes of shards differ by at most one where the examples do not divide evenly.

    Attributes:
        num_clients: Number of clients, at least 1.
        num_shards_per_client: Shards of each client, at least 1: few shards are few classes.
    """

    num_clients: int
    num_shards_per_client: int = 2

    def __post_init__(self) -> None:
        at_least(1, num_clients=self.num_clients, num_shards_per_client=self.num_shards_per_client)

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the sorted example indices of each client; ValueError if there are fewer examples than shards."""
        check_enough(len(dataset), self.num_clients, num_shards_per_client=self.num_shards_per_client)
        rng = generator(seed, "partition", "shards")
        order = rng.permutation(len(dataset))
        order = order[np.argsort(dataset.labels[order], kind="stable")]
        shards = np.array_split(order, self.num_clients * self.num_shards_per_client)
        hands = rng.permutation(len(shards)).reshape(self.num_clients, -1)
        return [np.sort(np.concatenate([shards[number] for number in hand])) for hand in hands]


@dataclass(frozen=True, slots=True)
class QuantitySkew:
    """Clients of unequal sizes, each a random sample of all the examples.

    Every client first gets `min_examples`; the rest is divided by shares drawn from a symmetric Dirichlet distribution
    (Li 2022, "Federated Learning on Non-IID Data Silos: An Experimental Study") or by a power law, in which the share
    of the client of rank r is proportional to r to the power of -exponent.

    Attributes:
        num_clients: Number of clients, at least 1.
        alpha: Concentration of the Dirichlet shares, above 0: small values make sizes very unequal; None for the power
            law.
        exponent: Exponent of the power law: 0 makes sizes equal, large values very unequal; None for Dirichlet shares.
        min_examples: Every client gets at least this many examples.
    """

    num_clients: int
    alpha: float | None = 0.5
    exponent: float | None = None
    min_examples: int = 1

    def __post_init__(self) -> None:
        at_least(1, num_clients=self.num_clients, min_examples=self.min_examples)
        if self.alpha is not None and not (isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be above 0 and finite, got {self.alpha}")
        if self.exponent is not None and not (isfinite(self.exponent) and self.exponent >= 0):
            raise ValueError(f"exponent must be at least 0 and finite, got {self.exponent}")
        if self.alpha is None and self.exponent is None:
            raise ValueError("exponent must be a number where alpha is null, got None")
        if self.alpha is not None and self.exponent is not None:
            raise ValueError(f"exponent must be null where alpha is {self.alpha}, got {self.exponent}")

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the sorted example indices of each client; ValueError if there are too few examples."""
        check_enough(len(dataset), self.num_clients, min_examples=self.min_examples)
        rng = generator(seed, "partition", "quantity_skew")
        rest = len(dataset) - self.num_clients * self.min_examples
        sizes = self.min_examples + apportion(rest, self._shares(rng))
        pieces = np.split(rng.permutation(len(dataset)), np.cumsum(sizes)[:-1])
        return [np.sort(piece) for piece in pieces]

    def _shares(self, rng: np.random.Generator) -> NDArray[np.float64]:
        if self.alpha is not None:
            return rng.dirichlet(np.full(self.num_clients, self.alpha))
        ranks = 1.0 + rng.permutation(self.num_clients)
        return np.asarray(ranks ** -(self.exponent or 0.0), dtype=np.float64)
