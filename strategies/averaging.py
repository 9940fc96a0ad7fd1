"""Weighted averaging, with a server optimizer where asked (McMahan et al. 2017; Reddi et al. 2021)."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, cast

import numpy as np
import torch

from fedssl.arrays import Arrays
from fedssl.checks import one_of
from fedssl.wire import LocalUpdate
from strategies.aggregation import WeightedMean
from strategies.base import Federated

_MakeOptimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class Averaging(Federated):
    """The mean of the updates, weighted by examples: FedAvg; with an optimizer FedAvgM, FedAdam and their like.

    Args:
        share: Groups of tensors that are exchanged; None exchanges all.
        optimizer: Makes an optimizer from parameters; it steps along `current - mean`. None takes the mean itself.
            Buffers (running statistics, counters) always take the mean: they are no directions to step along.
        weights: Whether a client counts by its examples, or all the same.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        share: Collection[str] | None = None,
        optimizer: _MakeOptimizer | None = None,
        weights: Literal["examples", "equal"] = "examples",
    ) -> None:
        one_of(("examples", "equal"), weights=weights)
        super().__init__(share)
        self.weights = weights
        self._make_optimizer = optimizer
        self._optimizer: torch.optim.Optimizer | None = None
        self._parameters: dict[str, torch.nn.Parameter] = {}

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean, or the server optimizer's step towards it."""
        mean = WeightedMean()
        for update in updates:
            mean.add(update.arrays, self.weight(update))
        merged = mean.result()
        return merged if self._make_optimizer is None else self._step(current, merged)

    def weight(self, update: LocalUpdate) -> float:
        """Return what an update counts in the mean."""
        return 1.0 if self.weights == "equal" else float(update.num_examples)

    def state(self) -> Mapping[str, Any]:
        """Return the server optimizer's state."""
        return {} if self._optimizer is None else {"optimizer": self._optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any], current: Arrays) -> None:
        """Take the server optimizer's state back."""
        if "optimizer" in state:
            self._open(current).load_state_dict(state["optimizer"])

    def _open(self, current: Arrays) -> torch.optim.Optimizer:
        """Return the server optimizer, made when it is first needed; buffers are no parameters of it."""
        if self._optimizer is None:
            trained = [name for name in sorted(current) if name not in self.buffers]
            self._parameters = {name: torch.nn.Parameter(torch.tensor(current[name])) for name in trained}
            self._optimizer = cast(_MakeOptimizer, self._make_optimizer)(list(self._parameters.values()))
        return self._optimizer

    def _step(self, current: Arrays, mean: Arrays) -> dict[str, Any]:
        optimizer = self._open(current)
        for name, parameter in self._parameters.items():
            parameter.data.copy_(torch.tensor(current[name]))
            parameter.grad = torch.tensor(np.asarray(current[name] - mean[name]))
        optimizer.step()
        stepped = {name: parameter.detach().numpy().copy() for name, parameter in self._parameters.items()}
        return {**mean, **stepped}
