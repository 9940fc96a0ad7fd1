"""Every client knows some labels of its own (Twin-sight, Zhang et al. 2024; FedMatch, Jeong et al. 2021)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedssl.checks import at_least
from fedssl.data.deficiency import Holdings, Indices, Known
from fedssl.data.deficiency_draw import draw
from fedssl.seeding import generator


@dataclass(frozen=True, slots=True)
class PartialData:
    """Every client knows the labels of a part of each class that it holds.

    Attributes:
        share: Known part of the client's examples of a class, above 0 and at most 1, rounded and at least one example;
            None where `per_class` is given.
        per_class: Known examples of a class, at least 1, or all where the client holds fewer; None where `share` is
            given.

    Raises:
        ValueError: An argument is out of range, or both or neither are given.
    """

    share: float | None = None
    per_class: int | None = None
    on_devices: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")
        at_least(1, per_class=self.per_class)
        if self.share is None and self.per_class is None:
            raise ValueError("per_class must be a number where share is null, got None")
        if self.share is not None and self.per_class is not None:
            raise ValueError(f"per_class must be null where share is {self.share}, got {self.per_class}")

    def wanted(self, counts: Indices) -> Indices:
        """Return how many labels of each class a client knows that holds `counts` examples of them."""
        most = np.full_like(counts, self.per_class or 0)
        if self.share is not None:
            most = np.maximum(1, np.rint(self.share * counts)).astype(np.int64)
        known: Indices = np.minimum(counts, most)
        return known

    def __call__(self, labels: Indices, holdings: Holdings, num_classes: int, seed: int) -> Known:
        """Return that a part of each client's labels is known; its draw depends on its own labels alone."""
        labelled = np.zeros(len(labels), dtype=np.bool_)
        for client, own in holdings.items():
            wanted = self.wanted(np.bincount(labels[own], minlength=num_classes))
            labelled[draw(own, labels[own], wanted, generator(seed, "labels", "partial_data", client))] = True
        return Known(labelled, np.empty(0, np.int64))
