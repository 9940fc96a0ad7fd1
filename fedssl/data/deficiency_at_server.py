"""The labels are the server's, and clients have none (SemiFL, Diao et al., NeurIPS 2022)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedssl.checks import at_least
from fedssl.data.deficiency import Holdings, Indices, Known
from fedssl.data.deficiency_draw import held
from fedssl.seeding import generator


@dataclass(frozen=True, slots=True)
class AtServer:
    """The server takes labelled examples away from the clients; the labels of all that they keep are unknown.

    A client's last example stays with it.

    Attributes:
        num_labels: Examples that the server takes, as many of every class, one more of the first classes where they do
            not divide evenly; at least 1.
        epochs: Passes of the server over its examples after each round, at least 1.

    Raises:
        ValueError: An argument is out of range.
    """

    num_labels: int
    epochs: int = 1
    on_devices: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(1, num_labels=self.num_labels, epochs=self.epochs)

    def __call__(self, labels: Indices, holdings: Holdings, num_classes: int, seed: int) -> Known:
        """Return what the server takes; ValueError if clients cannot spare it."""
        total, clients = sum(map(len, holdings.values())), len(holdings)
        if self.num_labels > total - clients:
            place = f"{total} examples, one of which stays with each of {clients} clients"
            raise ValueError(f"num_labels must be at most {total - clients} ({place}), got {self.num_labels}")
        each, more = divmod(self.num_labels, num_classes)
        wanted = each + (np.arange(num_classes) < more)
        return Known(np.zeros(len(labels), dtype=np.bool_), np.sort(self._taken(labels, holdings, wanted, seed)))

    def _taken(self, labels: Indices, holdings: Holdings, wanted: Indices, seed: int) -> Indices:
        """Return random examples, `wanted` of each class, none of them the last that its client has left."""
        rng = generator(seed, "labels", "at_server")
        left = {client: len(own) for client, own in holdings.items()}
        holder = {example: client for client, own in holdings.items() for example in own.tolist()}
        together = held(holdings)
        spare = np.bincount(labels[together], minlength=len(wanted)) - wanted
        taken: list[int] = []
        for label in np.argsort(spare, kind="stable"):  # where there is little choice before last examples are many
            before = len(taken)
            for example in rng.permutation(together[labels[together] == label]).tolist():
                if len(taken) - before < wanted[label] and left[holder[example]] > 1:
                    left[holder[example]] -= 1
                    taken.append(example)
            if (number := len(taken) - before) < wanted[label]:
                place = f"clients can spare {number} examples of class {label}, not {wanted[label]}"
                raise ValueError(f"num_labels must be lower ({place}), got {self.num_labels}")
        return np.array(taken, dtype=np.int64)
