"""What an encoder comes to when it learns from a few labels.

Chen 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners".
"""

import copy
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.checks import above, at_least
from fedssl.data.dataset import Dataset
from fedssl.evaluation.sgd import Classifier, SgdSchedule, train_classifier
from fedssl.evaluation.subsets import labelled
from fedssl.seeding import derive


class Examples(Protocol):
    """Some images or videos of a dataset, as fine-tuning reads them."""

    @property
    def dataset(self) -> Dataset:
        """What they are of."""
        ...

    @property
    def device(self) -> torch.device:
        """Where pixels are wanted."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels `[num_examples]`."""
        ...

    def subset(self, places: NDArray[np.int64]) -> Self:
        """Return the examples at `places`."""
        ...

    def view(self, places: NDArray[np.int64], *name: int | str) -> Tensor:
        """Return a random view of each example at `places`; the same name gives the same pixels."""
        ...

    def answers(self, classifier: nn.Module, batch_size: int) -> NDArray[np.float32]:
        """Return how much a classifier is for each class, `[num_examples, num_classes]`."""
        ...


@dataclass(frozen=True, slots=True)
class FineTune:
    """Training of a copy of the encoder and of a linear layer on it, on random views of labelled examples.

    Args:
        steps: Batches, whatever the number of labels.
        batch_size: Most examples of a batch, at least 3: batch normalisation cannot take a batch of one.
        learning_rate: Of the linear layer.
        encoder_factor: The encoder's learning rate is this times that of the linear layer; 0 leaves the encoder, and
            the statistics of its batch normalisation, as they are.
        repeats: Choices of the labels, each with a training of its own.

    Raises:
        ValueError: If an argument is out of range.
    """

    steps: int = 1000
    batch_size: int = 256
    learning_rate: float = 0.1
    encoder_factor: float = 0.1
    repeats: int = 3

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, repeats=self.repeats)
        at_least(3, batch_size=self.batch_size)
        above(0, learning_rate=self.learning_rate)
        at_least(0, encoder_factor=self.encoder_factor)

    def accuracies(
        self,
        encoder: nn.Module,
        train: Examples,
        test: Examples,
        amount: str,
        standard: tuple[Tensor, Tensor],
        seed: int,
    ) -> list[float]:
        """Return the accuracy on `test` of each repeat; `encoder` itself is not touched.

        Args:
            encoder: Where each repeat begins.
            train: Every training example.
            test: Examples to be told apart.
            amount: Labels that are known, "N%" or "N per class"; see `labelled`.
            standard: Mean and scale `[d]` of the encoder's features.
            seed: Root of what is random.
        """
        return [
            self._accuracy(encoder, train, test, amount, standard, derive(seed, "fine_tune", repeat))
            for repeat in range(self.repeats)
        ]

    def _accuracy(
        self,
        encoder: nn.Module,
        train: Examples,
        test: Examples,
        amount: str,
        standard: tuple[Tensor, Tensor],
        seed: int,
    ) -> float:
        known = train.subset(labelled(train.labels, amount, seed))
        mean, scale = (value.float() for value in standard)
        classifier = Classifier(copy.deepcopy(encoder), mean, scale, len(train.dataset.classes)).to(train.device)
        labels = torch.from_numpy(known.labels).to(train.device)
        schedule = SgdSchedule(self.steps, self.batch_size, self.learning_rate, self.encoder_factor)
        train_classifier(
            classifier, lambda places, step: known.view(places, "fine_tune", seed, step), labels, schedule, seed
        )
        answers = test.answers(classifier, self.batch_size)
        return float((answers.argmax(axis=1) == test.labels).mean())
