"""SCAFFOLD: the mean of the updates, and the mean of every client's control variate (Karimireddy et al. 2020)."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.wire import LocalUpdate, TrainTask
from strategies.aggregation import WeightedMean
from strategies.averaging import Averaging
from strategies.base import Plan

VARIATE = "variate"


class Scaffold(Averaging):
    """Send the server's control variate with the model, and move it by the changes that clients report.

    For client=scaffold. As published, every client of a round counts the same, whatever it holds, in the model and in
    the variate: the goal is the plain mean of the clients' losses. The variate moves by the mean change times the
    share of all clients that took part, so it stays the mean of all clients' variates; only a client whose update was
    lost on its way has changed its own all the same. Payloads double in both directions.

    Args:
        share: Groups of tensors that are exchanged; None exchanges all.
        optimizer: Makes an optimizer from parameters; SGD's learning rate is the published global step size. None
            takes the mean itself.
    """

    def __init__(
        self,
        share: Collection[str] | None = None,
        optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
    ) -> None:
        super().__init__(share, optimizer)
        self._variate: dict[str, NDArray[Any]] = {}
        self._num_clients = 0

    def task(self, current: Arrays, round_number: int, plan: Plan) -> TrainTask:
        """Return the task with the variate, which begins at 0."""
        self._num_clients = plan.num_clients
        if not self._variate:
            self._variate = {n: np.zeros_like(array) for n, array in current.items() if n not in self.buffers}
        return replace(super().task(current, round_number, plan), extras={VARIATE: self._variate})

    def extras(self, current: Arrays) -> Mapping[str, Arrays]:
        """Ask every update for the change of the client's variate."""
        return {VARIATE: self._variate}

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean of the updates, and move the variate."""
        changes, count = WeightedMean(), 0

        def counted() -> Iterator[LocalUpdate]:
            nonlocal count
            for update in updates:
                changes.add(update.extras[VARIATE], 1.0)
                count += 1
                yield replace(update, num_examples=1)

        merged = super().merge(current, counted(), round_number)
        share = count / self._num_clients
        self._variate = {
            name: np.asarray(self._variate[name] + share * change, change.dtype)
            for name, change in changes.result().items()
        }
        return merged

    def state(self) -> Mapping[str, Any]:
        """Return the variate, beside the server optimizer's state."""
        return {**super().state(), VARIATE: {name: torch.tensor(array) for name, array in self._variate.items()}}

    def restore(self, state: Mapping[str, Any], current: Arrays) -> None:
        """Take the variate back."""
        super().restore(state, current)
        self._variate = {name: tensor.numpy() for name, tensor in state.get(VARIATE, {}).items()}
