"""Error-minimising noise (Huang et al. 2021, "Unlearnable Examples: Making Personal Data Unexploitable").

Noise and a source model minimise the same loss in turn, so that a model finds little left to learn.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, one_of, within
from fedssl.models.image import small_resnet
from fedssl.objectives.objective import CLASSIFIER
from fedssl.objectives.supervised import class_sums, classify
from fedssl.privacy.unlearnable.groups import PER, Per, by_class, rows_of
from fedssl.privacy.unlearnable.noise import LEVELS, Noise, levels
from fedssl.privacy.unlearnable.protector import Owned, Protector
from fedssl.privacy.unlearnable.surrogate import to_pixels
from fedssl.seeding import generator, torch_stream

_MOMENTUM, _WEIGHT_DECAY, _EVALUATED = 0.9, 5e-4, 500


@dataclass(frozen=True, kw_only=True)
class ErrorMinimising(Protector):
    """Steps of a source model on protected images, then a pass that changes the noise by signed descent; and again.

    Attributes:
        per: What shares a pattern; clusters of pixels are also taken for the labels that nobody has.
        num_clusters: Of `per="cluster"`.
        model_steps: Steps of the source model between passes.
        inner_steps: Steps of the noise on each batch of a pass.
        step: Of the noise, in units of the budget.
        subset: Share of the images that a pass sees, others each time.
        stop_error: The noise is done when the source model errs on less than this share of the protected images.
        min_rounds: Passes before that: easy images are learned before there is any noise.
        max_rounds: The noise is also done after this many passes.
        batch_size: Images of a step.
        learning_rate: Of the source model's SGD.
        width: Channels of the first stage of the source model.
        stem_stride: Stride of its first convolution; 2 costs a quarter.

    Raises:
        ValueError: An argument is out of range.
    """

    per: Per = "class"
    num_clusters: int = 10
    model_steps: int = 10
    inner_steps: int = 1
    step: float = 0.1
    subset: float = 0.2
    stop_error: float = 0.1
    min_rounds: int = 20
    max_rounds: int = 50
    batch_size: int = 128
    learning_rate: float = 0.1
    width: int = 8
    stem_stride: int = 1

    def __post_init__(self) -> None:
        Protector.__post_init__(self)
        one_of(PER, per=self.per)
        at_least(1, num_clusters=self.num_clusters, model_steps=self.model_steps, inner_steps=self.inner_steps)
        at_least(1, min_rounds=self.min_rounds, batch_size=self.batch_size)
        at_least(1, width=self.width, stem_stride=self.stem_stride)
        above(0, step=self.step, subset=self.subset, learning_rate=self.learning_rate)
        at_least(self.min_rounds, max_rounds=self.max_rounds)
        within(0, 1, step=self.step, subset=self.subset, stop_error=self.stop_error)

    @property
    def needs_labels(self) -> bool:
        """Whether the source model learns the owner's labels."""
        return self.per != "cluster"

    def fit(self, owned: Owned) -> Noise:
        """Return noise for an owner's images.

        Raises:
            ValueError: A class is missing, or there are more clusters than images.
        """
        rows, number = rows_of(owned, self.per, self.num_clusters)
        labels, num_classes = (by_class(owned), owned.num_classes) if self.needs_labels else (rows, number)
        shown = _Shown(owned, rows, labels, number)
        with torch_stream(owned.seed, "unlearnable", "error_minimising"):
            encoder = small_resnet(owned.images.shape[3], self.width, self.stem_stride)
            model = nn.ModuleDict({"backbone": encoder, CLASSIFIER: nn.Linear(encoder.feature_dim, num_classes)})
        model.to(owned.device)
        optimizer = torch.optim.SGD(model.parameters(), self.learning_rate, _MOMENTUM, weight_decay=_WEIGHT_DECAY)
        rng = generator(owned.seed, "unlearnable", "error_minimising", "order")
        batches = self._endless(len(rows), rng)
        for done in range(1, self.max_rounds + 1):
            model.train()
            for _ in range(self.model_steps):
                loss = _loss(model, *shown.protected(next(batches)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            model.eval()
            for places in self._batches(rng.permutation(len(rows))[: max(1, round(self.subset * len(rows)))]):
                self._improve(model, shown, places)
            error = shown.error(model)
            owned.say(f"noise; training error {error:.2f}", done, self.max_rounds)
            if done >= self.min_rounds and error < self.stop_error:
                break
        return Noise(levels(shown.noise, self.budget), rows, self.budget)

    def _improve(self, model: nn.ModuleDict, shown: "_Shown", places: NDArray[np.int64]) -> None:
        """Give each pattern the mean of what descent makes of it on each of some images."""
        images, rows, labels = shown.clean(places)
        better = self.descend(model, images, shown.noise[rows], labels)
        changed, groups = rows.unique(return_inverse=True)
        sums, counts = class_sums(better.flatten(1), groups, len(changed))
        shown.noise[changed] = (sums / counts[:, None]).view(-1, *better.shape[1:])

    def descend(self, model: nn.ModuleDict, images: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        """Return noise after steps down the sign of the gradient, each within the budget.

        Args:
            model: A backbone and a classifier.
            images: `[n, channels, height, width]` in 0 to 1.
            noise: The same shape, one for each image, in the same units.
            labels: `[n]` int64.
        """
        budget = self.budget / LEVELS
        for _ in range(self.inner_steps):
            seen = (images + noise).clamp(0, 1).requires_grad_()
            (slope,) = torch.autograd.grad(_loss(model, seen, labels), seen)
            noise = (noise - self.step * budget * slope.sign()).clamp(-budget, budget)
        return noise

    def _endless(self, number: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield batches of a pass over all images in a new order, then of the next."""
        while True:
            yield from self._batches(rng.permutation(number))

    def _batches(self, places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return places in batches of nearly one size, since batch normalisation needs more than a few images."""
        return np.array_split(places, -(-len(places) // self.batch_size))


class _Shown:
    """Images, the pattern and the label of each, and what the patterns are by now."""

    def __init__(self, owned: Owned, rows: NDArray[np.int64], labels: NDArray[np.int64], number: int) -> None:
        self._owned = owned
        self._rows, self._labels = (torch.from_numpy(each).to(owned.device) for each in (rows, labels))
        height, width, channels = owned.images.shape[1:]
        self.noise = torch.zeros(number, channels, height, width, device=owned.device)

    def clean(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Return some images, their rows and their labels."""
        chosen = torch.from_numpy(places).to(self.noise.device)
        return to_pixels(self._owned.images[places], self.noise.device), self._rows[chosen], self._labels[chosen]

    def protected(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return some images with their patterns added, and their labels."""
        images, rows, labels = self.clean(places)
        return (images + self.noise[rows]).clamp(0, 1), labels

    @torch.no_grad()
    def error(self, model: nn.ModuleDict) -> float:
        """Return the share of the protected images that a model gets wrong."""
        wrong = 0
        for start in range(0, len(self._rows), _EVALUATED):
            images, labels = self.protected(np.arange(start, min(start + _EVALUATED, len(self._rows))))
            wrong += int((classify(model, images[:, :, None]).argmax(dim=1) != labels).sum())
        return wrong / len(self._rows)


def _loss(model: nn.ModuleDict, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy in nats."""
    return F.cross_entropy(classify(model, images[:, :, None]), labels)
