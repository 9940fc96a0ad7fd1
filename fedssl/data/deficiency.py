"""Whose labels are known: to a client, to the server, or to nobody."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.seeding import generator

Indices = NDArray[np.int64]
Holdings = Mapping[int, Indices]
"""The examples of each client by its number; a device knows of its own client alone."""


@dataclass(frozen=True, slots=True)
class Known:
    """Which labels are known.

    Attributes:
        labelled: `[num_examples]` bool, whether the client that holds an example knows its label.
        server: Sorted indices of the examples that the server takes, with their labels; clients no longer hold them.
    """

    labelled: NDArray[np.bool_]
    server: Indices


class Deficiency(Protocol):
    """A way to take labels away.

    Attributes:
        on_devices: Whether a device can tell by itself which of its own labels are known.
    """

    on_devices: ClassVar[bool]

    def __call__(self, labels: Indices, holdings: Holdings, num_classes: int, seed: int) -> Known:
        """Return what is known, the same for the same seed.

        Args:
            labels: `[num_examples]` class of every example.
            holdings: Who holds which.
            num_classes: Classes of the data.
            seed: The run's seed.

        Raises:
            ValueError: "KEY must be ..., got VALUE": it cannot be done with these examples.
        """
        ...


@dataclass(frozen=True, slots=True)
class AllLabels:
    """Every client knows every label of its own."""

    on_devices: ClassVar[bool] = True

    def __call__(self, labels: Indices, holdings: Holdings, num_classes: int, seed: int) -> Known:
        """Return that everything is known."""
        return Known(np.ones(len(labels), dtype=np.bool_), np.empty(0, np.int64))


@dataclass(frozen=True, slots=True)
class PartialClient:
    """Some clients know all of their labels, the others none (Twin-sight, Zhang et al., ICLR 2024).

    Attributes:
        num_clients: Clients of the federation.
        num_labelled: Clients that know their labels, drawn by the seed; None where `unlabelled` names the others.
        unlabelled: Numbers of the clients that know none, such as published ones; None where they are drawn.

    Raises:
        ValueError: An argument is out of range, or both or neither of the last two are given.
    """

    num_clients: int
    num_labelled: int | None = None
    unlabelled: tuple[int, ...] | None = None
    on_devices: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_clients is None:  # as in a partition by owners that says not how many
            raise ValueError("num_clients must be a number, got None")
        at_least(1, num_clients=self.num_clients, num_labelled=self.num_labelled)
        if (self.num_labelled is None) == (self.unlabelled is None):
            raise ValueError(f"num_labelled must be null exactly where unlabelled is a list, got {self.num_labelled}")
        if self.num_labelled is not None and self.num_labelled > self.num_clients:
            raise ValueError(f"num_labelled must be at most the {self.num_clients} clients, got {self.num_labelled}")
        named = list(self.unlabelled or ())
        object.__setattr__(self, "unlabelled", None if self.unlabelled is None else tuple(named))
        if len(set(named)) < len(named) or not all(0 <= client < self.num_clients for client in named):
            raise ValueError(f"unlabelled must be different numbers from 0 to {self.num_clients - 1}, got {named}")

    def without(self, seed: int) -> frozenset[int]:
        """Return the clients that know no label."""
        if self.unlabelled is not None:
            return frozenset(self.unlabelled)
        order = generator(seed, "labels", "partial_client").permutation(self.num_clients)
        return frozenset(order[self.num_labelled :].tolist())

    def __call__(self, labels: Indices, holdings: Holdings, num_classes: int, seed: int) -> Known:
        """Return that the labels of labelled clients are known."""
        labelled = np.ones(len(labels), dtype=np.bool_)
        for client in self.without(seed) & set(holdings):
            labelled[holdings[client]] = False
        return Known(labelled, np.empty(0, np.int64))
