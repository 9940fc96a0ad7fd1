"""Weighted averaging, with a server optimizer where asked (McMahan et al. 2017; Reddi et al. 2021)."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch

from fedssl.arrays import Arrays
from fedssl.wire import LocalUpdate
from strategies.aggregation import WeightedMean
from strategies.base import Federated


class Averaging(Federated):
    """The mean of the updates, weighted by examples: FedAvg; with an optimizer FedAvgM, FedAdam and their like.

    Args:
        share: Groups of tensors that are exchanged; None exchanges all.
        optimizer: Makes an optimizer from parameters; it steps along `current - mean`. None takes the mean itself.
            Buffers (running statistics, counters) always take the mean: they are no directions to step along.
    """

    def __init__(
        self,
        share: Collection[str] | None = None,
        optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
    ) -> None:
        super().__init__(share)
        self._make_optimizer = optimizer
        self._optimizer: torch.optim.Optimizer | None = None
        self._parameters: dict[str, torch.nn.Parameter] = {}

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean, or the server optimizer's step towards it."""
        mean = WeightedMean()
        for update in updates:
            mean.add(update.arrays, update.num_examples)
        merged = mean.result()
        return merged if self._make_optimizer is None else self._step(current, merged)

    def _step(self, current: Arrays, mean: Arrays) -> dict[str, Any]:
        trained = [name for name in sorted(current) if name not in self.buffers]
        if self._optimizer is None and self._make_optimizer is not None:
            self._parameters = {name: torch.nn.Parameter(torch.tensor(current[name])) for name in trained}
            self._optimizer = self._make_optimizer(list(self._parameters.values()))
        for name, parameter in self._parameters.items():
            parameter.data.copy_(torch.tensor(current[name]))
            parameter.grad = torch.tensor(np.asarray(current[name] - mean[name]))
        if self._optimizer is not None:
            self._optimizer.step()
        stepped = {name: parameter.detach().numpy().copy() for name, parameter in self._parameters.items()}
        return {**mean, **stepped}
