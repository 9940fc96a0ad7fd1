"""Which client holds which training example."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.dataset import Dataset
from fedssl.data.partition_sizes import check_enough, top_up
from fedssl.seeding import generator

Parts = list[NDArray[np.int64]]


class Partitioner(Protocol):
    """A way to divide a dataset among clients."""

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the example indices of each client, the same for the same seed."""
        ...


class Overlapping:
    """A partitioner that may give an example to several clients, or to none."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Iid:
    """Shuffle, then deal out equally: client sizes differ by at most one.

    Attributes:
        num_clients: Number of clients, at least 1.
    """

    num_clients: int

    def __post_init__(self) -> None:
        at_least(1, num_clients=self.num_clients)

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the sorted example indices of each client; ValueError if there are too few examples."""
        check_enough(len(dataset), self.num_clients)
        order = generator(seed, "partition", "iid").permutation(len(dataset))
        return [np.sort(part) for part in np.array_split(order, self.num_clients)]


@dataclass(frozen=True, slots=True)
class Dirichlet:
    """Divide each class by shares drawn from a symmetric Dirichlet distribution.

    Clients that are left with too little then get examples from the largest ones.

    Attributes:
        num_clients: Number of clients, at least 1.
        alpha: Concentration above 0: small values give clients few classes, large ones an even mix.
        min_examples: Every client gets at least this many examples.
    """

    num_clients: int
    alpha: float
    min_examples: int = 1

    def __post_init__(self) -> None:
        at_least(1, num_clients=self.num_clients, min_examples=self.min_examples)
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be above 0 and finite, got {self.alpha}")

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the sorted example indices of each client; ValueError if there are too few examples."""
        check_enough(len(dataset), self.num_clients, min_examples=self.min_examples)
        rng = generator(seed, "partition", "dirichlet")
        parts: list[list[int]] = [[] for _ in range(self.num_clients)]
        for label in np.unique(dataset.labels):
            members = rng.permutation(np.flatnonzero(dataset.labels == label))
            shares = rng.dirichlet(np.full(self.num_clients, self.alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.extend(piece.tolist())
        top_up(parts, self.min_examples, rng)
        return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


@dataclass(frozen=True, slots=True)
class ClassesPerClient:
    """Give each client the same number of classes, and each class's examples equally to its holders.

    Attributes:
        num_clients: Number of clients, at least 1.
        classes_per_client: Number of classes that each client sees, at least 1.
    """

    num_clients: int
    classes_per_client: int

    def __post_init__(self) -> None:
        at_least(1, num_clients=self.num_clients, classes_per_client=self.classes_per_client)

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the sorted example indices of each client; ValueError if it cannot be done exactly."""
        check_enough(len(dataset), self.num_clients)
        rng = generator(seed, "partition", "classes_per_client")
        labels, sizes = np.unique(dataset.labels, return_counts=True)
        order = rng.permutation(len(labels))
        holders = self._holders(sizes[order])
        seats = rng.permutation(self.num_clients)
        parts: Parts = [np.empty(0, np.int64) for _ in seats]
        slot = 0
        for label, count in zip(labels[order], holders, strict=True):
            members = rng.permutation(np.flatnonzero(dataset.labels == label))
            for piece in np.array_split(members, count):
                client = seats[slot % self.num_clients]
                parts[client] = np.concatenate([parts[client], piece])
                slot += 1
        return [np.sort(part) for part in parts]

    def _holders(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many clients hold each class: at least one, and no more than it has examples."""
        name, got = "partition.classes_per_client", self.classes_per_client
        slots, room = self.num_clients * got, np.minimum(sizes, self.num_clients)
        if got > len(sizes):
            raise ValueError(f"{name} must be at most the {len(sizes)} classes, got {got}")
        if slots < len(sizes):
            least = -(-len(sizes) // self.num_clients)
            raise ValueError(f"{name} must be at least {least} to cover the {len(sizes)} classes, got {got}")
        if slots > room.sum():
            most = int(room.sum()) // self.num_clients
            raise ValueError(f"{name} must be at most {most}, since some classes have too few examples, got {got}")
        holders = np.ones(len(sizes), dtype=np.int64)
        for _ in range(slots - len(sizes)):
            holders[np.argmin(np.where(holders < room, holders, slots + 1))] += 1
        return holders


@dataclass(frozen=True, slots=True)
class ByOwner:
    """One client for each owner, in the order of their names.

    Attributes:
        num_clients: The number of owners that is expected; None for any.
    """

    num_clients: int | None = None

    def __post_init__(self) -> None:
        at_least(1, num_clients=self.num_clients)

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the sorted example indices of each owner; ValueError if an owner is "" or the number is wrong."""
        owners = np.array(dataset.owners)
        names = sorted(set(dataset.owners))
        if not names or "" in names:
            raise ValueError("partition by owner needs an owner for every example, but the dataset has none for some")
        if self.num_clients not in (None, len(names)):
            raise ValueError(f"partition.num_clients must be the {len(names)} owners or null, got {self.num_clients}")
        return [np.flatnonzero(owners == name) for name in names]


@dataclass(frozen=True, slots=True)
class OnDevice:
    """Nothing is divided: each client trains on all the examples that its own device holds; for deployment only.

    Attributes:
        num_clients: Number of devices that the server waits for, at least 1.
    """

    num_clients: int

    def __post_init__(self) -> None:
        at_least(1, num_clients=self.num_clients)


def partition(dataset: Dataset, partitioner: Partitioner, seed: int) -> Parts:
    """Divide `dataset` and check that every example goes to exactly one client, and no client is left without.

    Of a partitioner that is `Overlapping` only the latter is checked.

    Returns:
        The int64 example indices of each client.

    Raises:
        ValueError: The dataset cannot be divided like this, or the partitioner returned no exact cover.
    """
    parts = [np.asarray(part, dtype=np.int64) for part in partitioner(dataset, seed)]
    if empty := [client for client, part in enumerate(parts) if not len(part)]:
        raise ValueError(f"partition must give every client an example, got none for client {empty[0]}")
    if isinstance(partitioner, Overlapping):
        return parts
    together = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
    if not np.array_equal(together, np.arange(len(dataset))):
        text = f"partition must cover the {len(dataset)} training examples exactly once"
        raise ValueError(f"{text}, got {len(together)} indices, {len(np.unique(together))} of them different")
    return parts


def counts(dataset: Dataset, parts: Parts) -> NDArray[np.int64]:
    """Return how many examples of each class each client holds, `[clients, classes]` int64."""
    rows = [np.bincount(dataset.labels[part], minlength=len(dataset.classes)) for part in parts]
    return np.array(rows, dtype=np.int64).reshape(len(parts), len(dataset.classes))
