"""Who learns from protected images although their owner would not have it: a classifier, trained with labels."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, one_of
from fedssl.evaluation.features import evaluating
from fedssl.models.encoder import Encoder
from fedssl.models.image import resnet18, resnet50, small_resnet
from fedssl.models.vit import vit_tiny
from fedssl.privacy.unlearnable.defences.defence import Change, Defence
from fedssl.privacy.unlearnable.defences.shift_flip import ShiftFlip
from fedssl.privacy.unlearnable.surrogate import to_pixels
from fedssl.seeding import generator, torch_stream

Score = Callable[[NDArray[np.uint8], NDArray[np.int64]], float]
"""Returns the accuracy on images `[n, height, width, channels]` and labels `[n]`."""

ENCODERS: Mapping[str, Callable[[int, int], Encoder]] = {
    "small_resnet": lambda channels, size: small_resnet(channels, stem_stride=2),
    "resnet18": lambda channels, size: resnet18(channels),
    "resnet50": lambda channels, size: resnet50(channels),
    "vit_tiny": lambda channels, size: vit_tiny(channels, size),
}
"""Encoders of images by name, each made for a number of channels and a size."""

_LAST_RATE = 1e-6
_EVALUATED = 500  # images at once


class Victim(Protocol):
    """Anybody who learns: from protected images, however it likes, to something that can be scored.

    It has a `repr` that says how it learns, since results are kept by it.
    """

    def __call__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int, defence: Defence, seed: int
    ) -> Score:
        """Return what scores the result of learning.

        Args:
            images: `[n, height, width, channels]` uint8.
            labels: `[n]` int64 in 0 to `num_classes` - 1.
            num_classes: Number of classes.
            defence: What is done against protection.
            seed: Root of every random stream.
        """
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a classifier is trained: SGD with momentum 0.9, a cosine from the learning rate down to almost 0.

    Attributes:
        model: One of `ENCODERS`, under a linear layer.
        epochs: Passes over the images; 60 are published for small images, the default suits a small machine.
        batch_size: Most images of a step; the batches of an epoch are of nearly one size.
        learning_rate: At first.
        weight_decay: Of all weights.
        augment: Whether images are shifted and flipped before anything else is done to them, see `ShiftFlip`. Published
            recipes do; in short training that is a defence by itself.

    Raises:
        ValueError: A value is out of range.
    """

    model: str = "small_resnet"
    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    augment: bool = False

    def __post_init__(self) -> None:
        one_of(tuple(ENCODERS), model=self.model)
        at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        above(0, learning_rate=self.learning_rate)
        at_least(0, weight_decay=self.weight_decay)


class Classifier(nn.Module):
    """An encoder under a linear layer.

    Args:
        encoder: Of images as clips of one frame.
        num_classes: Number of classes.
        change: What is done to images before training, kept for whoever scores on images that are changed alike.
    """

    def __init__(self, encoder: Encoder, num_classes: int, change: Change) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.feature_dim, num_classes)
        self.change = change

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[n, num_classes]` of images `[n, channels, height, width]` in 0 to 1."""
        logits: Tensor = self.head(self.encoder(images[:, :, None]))
        return logits


@dataclass(frozen=True, slots=True)
class Supervised:
    """A victim that trains a classifier.

    Attributes:
        recipe: How.
        device: That it trains on.
        defend_test: Whether test images are changed as the training images were before training.
    """

    recipe: Recipe
    device: str = "cpu"
    defend_test: bool = False

    def __call__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int, defence: Defence, seed: int
    ) -> Score:
        """Return the accuracy of a classifier, see `Victim`."""
        model = train_victim(images, labels, num_classes, self.recipe, defence, seed, torch.device(self.device))

        def score(some: NDArray[np.uint8], truth: NDArray[np.int64]) -> float:
            return accuracy(model, some, truth, defended=self.defend_test)

        return score


def train_victim(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    num_classes: int,
    recipe: Recipe,
    defence: Defence,
    seed: int,
    device: torch.device,
) -> Classifier:
    """Return a classifier, trained with cross-entropy.

    Args:
        images: `[n, height, width, channels]` uint8, square.
        labels: `[n]` int64 in 0 to `num_classes` - 1.
        num_classes: Number of classes.
        recipe: How it is trained.
        defence: What is done against protection.
        seed: Root of every random stream.
        device: That it trains on, and then lies on.

    Raises:
        ValueError: The images are not square, or there is none.
        FloatingPointError: The loss stopped being a finite number.
    """
    _, height, width, channels = images.shape
    at_least(1, images=len(images))
    if height != width:
        raise ValueError(f"width must be {height} as the height, got {width}")
    change = defence.change(images, labels, seed)
    changed = change(images)
    before = ShiftFlip() if recipe.augment else Defence()
    targets = F.one_hot(torch.from_numpy(labels), num_classes).float().to(device)
    with torch_stream(seed, "victim", "init"):
        model = Classifier(ENCODERS[recipe.model](channels, height), num_classes, change).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay
    )
    per_epoch = math.ceil(len(images) / recipe.batch_size)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * per_epoch, eta_min=_LAST_RATE)
    with torch_stream(seed, "victim", "train"):
        for epoch in range(recipe.epochs):
            order = generator(seed, "victim", "order", epoch).permutation(len(images))
            for step, places in enumerate(np.array_split(order, per_epoch)):
                rng = generator(seed, "victim", "defence", epoch, step)
                chosen = torch.from_numpy(places).to(device)
                shown = before.batch(to_pixels(changed[places], device), targets[chosen], rng)
                batch, wanted = defence.batch(*shown, rng)
                loss = F.cross_entropy(model(defence.attack(model, batch, wanted, rng)), wanted)
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"the loss of a victim became {loss.item()} in epoch {epoch}")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                cosine.step()
    return model.eval()


def accuracy(
    model: Classifier, images: NDArray[np.uint8], labels: NDArray[np.int64], *, defended: bool = False
) -> float:
    """Return the share of images that a classifier is right about.

    Args:
        model: A trained classifier.
        images: `[n, height, width, channels]` uint8.
        labels: `[n]` int64.
        defended: Whether the images are first changed as those that the model was trained on.
    """
    seen = model.change(images) if defended else images
    device = model.head.weight.device
    right = 0
    with evaluating(model), torch.no_grad():
        for start in range(0, len(seen), _EVALUATED):
            found = model(to_pixels(seen[start : start + _EVALUATED], device)).argmax(dim=1).cpu().numpy()
            right += int((found == labels[start : start + _EVALUATED]).sum())
    return right / len(images)
