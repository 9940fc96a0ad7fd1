"""How far the clients of a partition share classes and examples, and how much of the data they use."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedssl.data.dataset import Dataset
from fedssl.data.partition import Parts, counts


@dataclass(frozen=True, slots=True)
class Overlap:
    """What clients share.

    Attributes:
        clients_of_class: `[classes]` how many clients hold an example of each class.
        clients_of_example: `[num_examples]` how many clients hold each example.
        classes_of_client: `[clients]` how many classes each client holds.
    """

    clients_of_class: NDArray[np.int64]
    clients_of_example: NDArray[np.int64]
    classes_of_client: NDArray[np.int64]

    @property
    def text(self) -> str:
        """One line: "100 clients of 8 classes: 106 of 400 classes, 60505 of 219664 examples, 3.77 clients each"."""
        few, many = self.classes_of_client.min(), self.classes_of_client.max()
        classes, used = self.clients_of_class, self.clients_of_example[self.clients_of_example > 0]
        shares = f"{len(self.classes_of_client)} clients of {few if few == many else f'{few} to {many}'} classes"
        covered = f"{np.count_nonzero(classes)} of {len(classes)} classes"
        examples = f"{len(used)} of {len(self.clients_of_example)} examples"
        return f"{shares}: {covered}, {examples}, {used.mean():.2f} clients each"


def overlap(dataset: Dataset, parts: Parts) -> Overlap:
    """Return what the clients of a partition share; `parts` are the example indices of each, none of them empty."""
    held = counts(dataset, parts) > 0
    examples = np.bincount(np.concatenate(parts), minlength=len(dataset))
    return Overlap(held.sum(axis=0), examples, held.sum(axis=1))
