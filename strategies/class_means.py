"""Averaging, and beside it the mean vector of each class over the clients that hold examples of it (FedIRM, Liu 2021).

"Federated Semi-supervised Medical Image Classification via Inter-client Relation Matching".
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.checks import one_of
from fedssl.wire import LocalUpdate, TrainTask
from strategies.averaging import Averaging
from strategies.base import Plan

CLASSES = "classes"
_WEIGHT = "classifier.weight"


class ClassMeans(Averaging):
    """Averaging that also tells the clients the mean vector of each class, whatever they take for one.

    Each update brings the group "classes": the sums `[num_classes, width]` of a client's vectors of each class and
    their counts `[num_classes]`, which need not be whole. The server divides the sums of a round's clients by their
    counts. A class that none of them counted keeps its mean of an earlier round; before it has one, its mean is zeros
    and its count 0. Each task brings the "means" and the "counts" that they are of.

    How many classes there are, and how wide a feature is, is read off the classifier, which must be exchanged.

    Args:
        share: Groups of tensors that are exchanged; None exchanges all.
        optimizer: Of the server, see `Averaging`.
        weights: Of the clients in the mean of the models, see `Averaging`; in those of the classes their counts say it.
        width: Numbers in a vector: as many as the backbone's "features" have, or as there are "classes".

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        share: Collection[str] | None = None,
        optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
        weights: Literal["examples", "equal"] = "examples",
        width: Literal["features", "classes"] = "features",
    ) -> None:
        one_of(("features", "classes"), width=width)
        super().__init__(share, optimizer, weights)
        self.width = width
        self._means: dict[str, NDArray[np.float32]] = {}

    def task(self, current: Arrays, round_number: int, plan: Plan) -> TrainTask:
        """Return the task with the means of the classes and their counts."""
        extras = {CLASSES: self._known(current)}
        return replace(super().task(current, round_number, plan), extras=extras)

    def extras(self, current: Arrays) -> Mapping[str, Arrays]:
        """Return the shapes of the sums and counts that every client must send."""
        known = self._known(current)
        return {CLASSES: {"sums": known["means"], "counts": known["counts"]}}

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean of the updates, and take the means of the classes that they counted."""
        known = self._known(current)
        sums, counts = np.zeros(known["means"].shape), np.zeros(known["counts"].shape)

        def counted() -> Iterator[LocalUpdate]:
            for update in updates:
                np.add(sums, update.extras[CLASSES]["sums"], out=sums)
                np.add(counts, update.extras[CLASSES]["counts"], out=counts)
                yield update

        merged = super().merge(current, counted(), round_number)
        seen = counts > 0
        means = np.where(seen[:, None], sums / np.where(seen, counts, 1)[:, None], known["means"])
        self._means = {
            "means": means.astype(np.float32),
            "counts": np.where(seen, counts, known["counts"]).astype(np.float32),
        }
        return merged

    def state(self) -> Mapping[str, Any]:
        """Return the means of the classes, beside the server optimizer's state."""
        return {**super().state(), CLASSES: {name: torch.tensor(array) for name, array in self._means.items()}}

    def restore(self, state: Mapping[str, Any], current: Arrays) -> None:
        """Take the means of the classes back."""
        super().restore(state, current)
        self._means = {name: tensor.numpy() for name, tensor in state.get(CLASSES, {}).items()}

    def _known(self, current: Arrays) -> dict[str, NDArray[np.float32]]:
        """Return the means `[num_classes, width]` and counts `[num_classes]` so far.

        Raises:
            ValueError: The classifier is not exchanged.
        """
        if not self._means:
            if _WEIGHT not in current:
                raise ValueError(
                    f"strategy.share must be null or name the classifier of an objective, got {self.share}"
                )
            classes, features = current[_WEIGHT].shape
            width = features if self.width == "features" else classes
            self._means = {"means": np.zeros((classes, width), np.float32), "counts": np.zeros(classes, np.float32)}
        return self._means
