"""A linear classifier on an encoder, by stochastic gradients: the encoder learns along, or stays as it is."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.seeding import generator, torch_stream

_EPSILON = 1e-5
Draw = Callable[[NDArray[np.int64], int], Tensor]
"""Returns what a classifier sees of the examples at some places in a step."""


@dataclass(frozen=True, slots=True)
class SgdSchedule:
    """How a classifier is trained: Nesterov momentum 0.9, a cosine from the learning rate to 0.

    Attributes:
        steps: Batches.
        batch_size: Most examples of a batch; the batches of an epoch are of nearly one size, none is dropped.
        learning_rate: Of the linear layer.
        encoder_factor: The encoder's learning rate is this times that of the linear layer; at 0 the encoder stays as
            it is, the statistics of its batch normalisation too.
    """

    steps: int
    batch_size: int
    learning_rate: float
    encoder_factor: float = 0.0


class Classifier(nn.Module):
    """A linear layer, at first all zeros, on normalised features.

    While the encoder learns its features are normalised in each batch, as features that drift off would upset the
    linear layer; otherwise by the statistics given here.

    Args:
        encoder: Maps what it is given to `[n, d]`.
        mean: `[d]` of the features, at first.
        scale: `[d]`, their standard deviation, at first.
        num_classes: Number of classes.
    """

    def __init__(self, encoder: nn.Module, mean: Tensor, scale: Tensor, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        # relative to the features: those of untrained encoders vary little
        epsilon = _EPSILON * float(scale.square().mean())
        self.norm = nn.BatchNorm1d(len(mean), eps=epsilon, affine=False).to(mean.device)
        self.norm.get_buffer("running_mean").copy_(mean)
        self.norm.get_buffer("running_var").copy_(scale.square())
        self.weight = nn.Parameter(mean.new_zeros(len(mean), num_classes))
        self.bias = nn.Parameter(mean.new_zeros(num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits `[n, num_classes]`."""
        logits: Tensor = self.norm(self.encoder(inputs)) @ self.weight + self.bias
        return logits


def train_classifier(classifier: Classifier, draw: Draw, labels: Tensor, schedule: SgdSchedule, seed: int) -> None:
    """Train `classifier` in place, with cross-entropy.

    Args:
        classifier: Lies on the device of `labels`.
        draw: Returns what the classifier sees.
        labels: `[n]` int64.
        schedule: How.
        seed: Root of the order of the examples, and of what is random in the encoder's own layers.

    Raises:
        FloatingPointError: The loss stopped being a finite number.
    """
    learns = schedule.encoder_factor > 0
    classifier.train(learns)
    classifier.encoder.requires_grad_(learns)
    groups = [{"params": [classifier.weight, classifier.bias], "lr": schedule.learning_rate}]
    if learns:
        encoder_rate = schedule.learning_rate * schedule.encoder_factor
        groups.append({"params": list(classifier.encoder.parameters()), "lr": encoder_rate})
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
    with torch_stream(seed, "evaluation", "train"):
        for step, places in enumerate(_batches(len(labels), schedule, seed)):
            loss = F.cross_entropy(classifier(draw(places, step)), labels[torch.from_numpy(places).to(labels.device)])
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss of a classifier became {loss.item()} at step {step}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            cosine.step()


def _batches(number: int, schedule: SgdSchedule, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the places of each batch, epoch after epoch."""
    per_epoch = math.ceil(number / schedule.batch_size)
    parts: list[NDArray[np.int64]] = []
    for step in range(schedule.steps):
        if not parts:
            order = generator(seed, "evaluation", "order", step).permutation(number)
            parts = np.array_split(order, per_epoch)
        yield parts.pop()
