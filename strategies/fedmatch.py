"""FedMatch, server side: the plain mean, and for each client the models that answer most like its own (Jeong 2021).

"Federated Semi-Supervised Learning with Inter-Client Consistency & Disjoint Learning".
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.checks import at_least
from fedssl.wire import LocalUpdate, TrainTask
from strategies.averaging import Averaging
from strategies.base import Plan

HELPER = "helper"
EMBEDDING = "embedding"
_PSI = "psi."
_BIAS = "classifier.bias"


class FedMatch(Averaging):
    """The plain mean of the updates; a client of a round also gets the last psi of each of its helpers.

    For client=fedmatch. Helpers are the other clients whose models answer most like its own to one image of noise.
    They are chosen anew every `refresh_every` rounds, from the second time on: in the first round nobody has answered.
    Who has not taken part until then has none. The server keeps the last psi of every client, so its memory and the
    bundles of a run grow with the number of clients, and clients get what single other clients have learned.

    Args:
        num_helpers: Of a client, as far as there are other clients.
        refresh_every: Rounds between choices.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, num_helpers: int = 2, refresh_every: int = 10) -> None:
        at_least(0, num_helpers=num_helpers)
        at_least(1, refresh_every=refresh_every)
        super().__init__(weights="equal")
        self.num_helpers = num_helpers
        self.refresh_every = refresh_every
        self._embeddings: dict[int, NDArray[np.float32]] = {}
        self._psi: dict[int, dict[str, NDArray[Any]]] = {}
        self._helpers: dict[int, list[int]] = {}

    def task(self, current: Arrays, round_number: int, plan: Plan) -> TrainTask:
        """Return the task, and choose helpers where it is time."""
        if (round_number - 1) % self.refresh_every == 0:
            self._helpers = nearest(self._embeddings, self.num_helpers)
        return super().task(current, round_number, plan)

    def personal(self, partition: int) -> Mapping[str, Arrays]:
        """Return the psi of each helper of a client, the nearest first."""
        helpers = self._helpers.get(partition, [])
        return {f"{HELPER}{place}": self._psi[other] for place, other in enumerate(helpers)}

    def extras(self, current: Arrays) -> Mapping[str, Arrays]:
        """Return the shape of the answer that every client must send.

        Raises:
            ValueError: The objective is another.
        """
        if not any(name.startswith(_PSI) for name in current):
            raise ValueError("strategy=fedmatch needs objective=fedmatch")
        return {EMBEDDING: {"probabilities": np.zeros(len(current[_BIAS]), np.float32)}}

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean of the updates, and keep the psi and the answer of each."""

        def kept() -> Iterator[LocalUpdate]:
            for update in updates:
                self._embeddings[update.partition] = np.array(update.extras[EMBEDDING]["probabilities"])
                own = {name: np.array(array) for name, array in update.arrays.items() if name.startswith(_PSI)}
                self._psi[update.partition] = own
                yield update

        return super().merge(current, kept(), round_number)

    def state(self) -> Mapping[str, Any]:
        """Return what is kept of every client."""
        return {
            "embeddings": {partition: torch.tensor(own) for partition, own in self._embeddings.items()},
            "psi": {partition: _tensors(own) for partition, own in self._psi.items()},
            "helpers": {partition: list(own) for partition, own in self._helpers.items()},
        }

    def restore(self, state: Mapping[str, Any], current: Arrays) -> None:
        """Take back what is kept of every client."""
        self._embeddings = {partition: own.numpy() for partition, own in state.get("embeddings", {}).items()}
        psi = state.get("psi", {}).items()
        self._psi = {partition: {name: tensor.numpy() for name, tensor in own.items()} for partition, own in psi}
        self._helpers = dict(state.get("helpers", {}))


def nearest(embeddings: Mapping[int, NDArray[Any]], number: int) -> dict[int, list[int]]:
    """Return for each client the `number` others at the least distance, the nearest first; ties go to the lower index.

    Args:
        embeddings: `[dim]` by client.
        number: As many, or all others where there are fewer.
    """

    def distance(one: int, other: int) -> float:
        return float(np.linalg.norm(np.subtract(embeddings[one], embeddings[other], dtype=np.float64)))

    clients = sorted(embeddings)
    return {
        one: sorted((other for other in clients if other != one), key=lambda other: distance(one, other))[:number]
        for one in clients
    }


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}
