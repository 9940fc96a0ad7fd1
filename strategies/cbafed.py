"""CBAFed, server side: the mean, drawn back to an older model, and the federation's shares of classes (Li et al. 2023).

"Class Balanced Adaptive Pseudo Labeling for Federated Semi-Supervised Learning".
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.checks import at_least, within
from fedssl.wire import LocalUpdate, TrainTask
from strategies.aggregation import mix
from strategies.averaging import Averaging
from strategies.base import Plan

CLASSES = "classes"
_BIAS = "classifier.bias"


class CBAFed(Averaging):
    """The mean by examples that were learned from; every few rounds it is mixed with a record of the global model.

    For client=cbafed. The record is the model that the first round after the `labelled_rounds` of the run begins with,
    later the last mixture. The shares of the classes that clients get are those in the last counts of every client
    that ever contributed; one that accepts nothing keeps its last counts. Until there are any, every class has the
    same share. The server learns how many examples of each class a client has, as far as the client can tell.

    Args:
        residual: Share of the record; 0 leaves it out.
        residual_every: Rounds between mixtures.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, residual: float = 0.5, residual_every: int = 5) -> None:
        within(0, 1, residual=residual)
        at_least(1, residual_every=residual_every)
        super().__init__()
        self.residual = residual
        self.residual_every = residual_every
        self._record: Arrays = {}
        self._labelled_rounds = 0
        self._counts: dict[int, NDArray[np.int64]] = {}

    def task(self, current: Arrays, round_number: int, plan: Plan) -> TrainTask:
        """Return the task with the shares of the classes."""
        self._labelled_rounds = plan.labelled_rounds
        if round_number > plan.labelled_rounds and not self._record:
            self._record = dict(current)
        counts = sum(self._counts.values(), np.zeros(len(current[_BIAS])))
        shares = counts / counts.sum() if counts.any() else np.full(len(counts), 1 / len(counts))
        return replace(super().task(current, round_number, plan), extras={CLASSES: {"shares": shares}})

    def extras(self, current: Arrays) -> Mapping[str, Arrays]:
        """Return the shape of the counts that every client must send.

        Raises:
            ValueError: The objective has no classifier.
        """
        if _BIAS not in current:
            raise ValueError("strategy=cbafed needs an objective with a classifier, such as objective=supervised")
        return {CLASSES: {"counts": np.zeros(len(current[_BIAS]), np.int64)}}

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean of the updates, or its mixture with the record, and take the counts."""

        def counted() -> Iterator[LocalUpdate]:
            for update in updates:
                self._counts[update.partition] = np.array(update.extras[CLASSES]["counts"])
                yield update

        merged = super().merge(current, counted(), round_number)
        done = round_number - self._labelled_rounds
        if done > 0 and done % self.residual_every == 0:
            merged = mix(merged, self._record, 1 - self.residual)
            self._record = dict(merged)
        return merged

    def state(self) -> Mapping[str, Any]:
        """Return the record and the counts."""
        counts = {partition: torch.tensor(own) for partition, own in self._counts.items()}
        return {"record": {name: torch.tensor(array) for name, array in self._record.items()}, "counts": counts}

    def restore(self, state: Mapping[str, Any], current: Arrays) -> None:
        """Take the record and the counts back."""
        self._record = {name: tensor.numpy() for name, tensor in state.get("record", {}).items()}
        self._counts = {partition: tensor.numpy() for partition, tensor in state.get("counts", {}).items()}
