"""Contrastive poisoning: noise that makes the views of an image agree without showing what is in it (He 2023).

"Indiscriminate Poisoning Attacks on Unsupervised Contrastive Learning".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, one_of, within
from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.byol import Byol
from fedssl.objectives.nt_xent import nt_xent
from fedssl.objectives.simclr import SimClr
from fedssl.objectives.teacher import TEACHER
from fedssl.privacy.unlearnable.cut import cut
from fedssl.privacy.unlearnable.groups import PER, Per, by_sample, rows_of
from fedssl.privacy.unlearnable.noise import LEVELS, Noise, levels
from fedssl.privacy.unlearnable.protector import Owned, Protector
from fedssl.privacy.unlearnable.surrogate import to_pixels
from fedssl.seeding import generator, uniforms
from fedssl.training.image_view import ImageView
from fedssl.training.transforms import recolour

_VIEW = ImageView(crop_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
_HIDDEN, _DIM, _TEMPERATURE = 128, 64, 0.5
_MOMENTUM, _WEIGHT_DECAY = 0.9, 1e-4


@dataclass(frozen=True, kw_only=True)
class ContrastivePoisoning(Protector):
    """Steps of a source model on protected images, then steps of the noise down the same loss; and again.

    Attributes:
        framework: What the source model learns by: "simclr" or "byol". Noise for one works less against the other.
        per: What shares a pattern.
        num_clusters: Clusters of pixels, where some share a pattern.
        start: What shares the patterns that those of `per="sample"` begin with.
        start_rounds: Rounds of those, each with one inner step; 0 begins with random noise.
        rounds: Of steps of the source model and steps of the noise.
        model_steps: Steps of the source model in a round.
        noise_steps: Batches in a round whose noise is changed.
        inner_steps: Steps of the noise on each of them.
        step: Of the noise, in units of the budget.
        batch_size: Images of a step.
        learning_rate: Of the source model's SGD at the beginning; it falls along half a cosine.
        width: Channels of the first stage of the source model.
        stem_stride: Stride of its first convolution; 2 costs a quarter.

    Raises:
        ValueError: An argument is out of range.
    """

    framework: Literal["simclr", "byol"] = "simclr"
    per: Per = "class"
    num_clusters: int = 10
    start: Literal["class", "cluster"] = "cluster"
    start_rounds: int = 0
    rounds: int = 1000
    model_steps: int = 20
    noise_steps: int = 20
    inner_steps: int = 1
    step: float = 0.1
    batch_size: int = 512
    learning_rate: float = 0.5
    width: int = 16
    stem_stride: int = 1

    def __post_init__(self) -> None:
        Protector.__post_init__(self)
        one_of(("simclr", "byol"), framework=self.framework)
        one_of(PER, per=self.per)
        one_of(("class", "cluster"), start=self.start)
        at_least(0, start_rounds=self.start_rounds)
        at_least(1, num_clusters=self.num_clusters, rounds=self.rounds, model_steps=self.model_steps)
        at_least(1, noise_steps=self.noise_steps, inner_steps=self.inner_steps)
        at_least(2, batch_size=self.batch_size)
        at_least(1, width=self.width, stem_stride=self.stem_stride)
        above(0, step=self.step, learning_rate=self.learning_rate)
        within(0, 1, step=self.step)

    @property
    def needs_labels(self) -> bool:
        """Whether patterns are those of classes, or begin as such."""
        return self._first == "class"

    @property
    def _first(self) -> Per:
        """What shares a pattern at the beginning."""
        return self.start if self.per == "sample" and self.start_rounds else self.per

    def fit(self, owned: Owned) -> Noise:
        """Return noise for an owner's images.

        Raises:
            ValueError: A class is missing, there are more clusters than images, or a single image.
        """
        number, height, width, channels = owned.images.shape
        at_least(2, images=number)
        rows, patterns = rows_of(owned, self._first, self.num_clusters)
        shape = (patterns, channels, height, width)
        drawn = generator(owned.seed, "unlearnable", "contrastive").uniform(-1, 1, shape).astype(np.float32)
        noise = torch.from_numpy(drawn).to(owned.device) * (self.budget / LEVELS)
        if self._first != self.per:
            noise = self._poisoned(owned, noise, rows, "start", self.start_rounds, 1)
            noise, rows = noise[torch.from_numpy(rows).to(owned.device)], by_sample(number)
        noise = self._poisoned(owned, noise, rows, "noise", self.rounds, self.inner_steps)
        return Noise(levels(noise, self.budget), rows, self.budget)

    def source_model(self, channels: int, seed: int) -> nn.ModuleDict:
        """Return an untrained source model, see `contrastive_loss`."""
        return build_bundle(lambda: small_resnet(channels, self.width, self.stem_stride), self._objective, seed)

    @property
    def _objective(self) -> SimClr | Byol:
        if self.framework == "byol":
            return Byol(_HIDDEN, _DIM)
        return SimClr(_TEMPERATURE, _HIDDEN, _DIM)

    def _poisoned(
        self, owned: Owned, noise: Tensor, rows: NDArray[np.int64], stage: str, rounds: int, inner_steps: int
    ) -> Tensor:
        """Return noise after rounds with a fresh source model."""
        images = _Images(owned, rows, stage)
        model = self.source_model(noise.shape[1], owned.seed).to(owned.device)
        optimizer = torch.optim.SGD(model.parameters(), self.learning_rate, _MOMENTUM, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds * self.model_steps)
        for_model, for_noise = images.batches(self.batch_size, "model"), images.batches(self.batch_size, "descent")
        for done in range(1, rounds + 1):
            model.train()
            for step in range(self.model_steps):
                places = next(for_model)
                own, shared = images.rows(places)
                loss = contrastive_loss(model, *images.views(places, noise[own][shared]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                self._objective.after_step(model, (done - 1 + (step + 1) / self.model_steps) / rounds)
            model.eval()
            for _ in range(self.noise_steps):
                places = next(for_noise)
                own, shared = images.rows(places)
                for _ in range(inner_steps):
                    patterns = noise[own].requires_grad_()
                    loss = contrastive_loss(model, *images.views(places, patterns[shared]))
                    (slope,) = torch.autograd.grad(loss, patterns)
                    noise[own] = self._descended(patterns.detach(), slope)
            owned.say(f"{stage}; loss {loss.item():.2f}", done, rounds)
        return noise

    def _descended(self, patterns: Tensor, slope: Tensor) -> Tensor:
        """Return patterns after a step down the sign of a slope, within the budget."""
        limit = self.budget / LEVELS
        return (patterns - self.step * limit * slope.sign()).clamp(-limit, limit)


class _Images:
    """Images, their patterns, and random views of them; every view is another one."""

    def __init__(self, owned: Owned, rows: NDArray[np.int64], stage: str) -> None:
        self._owned, self._rows, self._stage, self._views = owned, rows, stage, 0

    def batches(self, size: int, purpose: str) -> Iterator[NDArray[np.int64]]:
        """Yield the places of batches of nearly one size, pass after pass, each in a new order."""
        rng, number = generator(self._owned.seed, "unlearnable", self._stage, purpose), len(self._rows)
        while True:
            yield from np.array_split(rng.permutation(number), math.ceil(number / size))

    def rows(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return which patterns some images have, and which of these each image has."""
        own, shared = np.unique(self._rows[places], return_inverse=True)
        return torch.from_numpy(own).to(self._owned.device), torch.from_numpy(shared).to(self._owned.device)

    def views(self, places: NDArray[np.int64], noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return two views of some images with noise `[n, channels, height, width]`, as clips of one frame."""
        shown = (to_pixels(self._owned.images[places], self._owned.device) + noise).clamp(0, 1)
        return self._view(shown, places), self._view(shown, places)

    def _view(self, shown: Tensor, places: NDArray[np.int64]) -> Tensor:
        self._views += 1
        path = (self._owned.seed, "unlearnable", self._stage, self._views)
        return view(shown, uniforms(*path, rows=places, columns=_VIEW.num_uniforms))


def view(images: Tensor, numbers: NDArray[np.float64]) -> Tensor:
    """Return a random view of each image, through which gradients flow: crop, flip and colours, as published.

    Args:
        images: `[n, channels, height, width]` in 0 to 1.
        numbers: `[n, 14]` in [0, 1), see `ImageView.draw`.

    Returns:
        `[n, channels, 1, height, width]`.
    """
    height, width = images.shape[2:]
    drawn = _VIEW.draw(numbers, height, width, height)
    clips = cut(images, drawn.boxes, height, width).unsqueeze(2)
    return recolour(clips, cast(NDArray[np.float64], drawn.colours)).clamp(0, 1)


def contrastive_loss(model: nn.ModuleDict, first: Tensor, second: Tensor) -> Tensor:
    """Return the loss of two views, whose gradient reaches both of them on every way.

    It is that of SimCLR, or that of BYOL where the model has a teacher: there the gradient also flows through the
    teacher into the views, though not into the teacher's weights, which no gradient changes.

    Args:
        model: A backbone and a projector, and for BYOL a predictor and a teacher.
        first: `[n, channels, 1, height, width]`.
        second: The same.
    """
    views = torch.cat((first, second))
    embeddings: Tensor = model["projector"](model["backbone"](views))
    if TEACHER not in model:
        return nt_xent(embeddings[: len(first)], embeddings[len(first) :], _TEMPERATURE)
    teacher = cast(nn.ModuleDict, model[TEACHER])
    targets: Tensor = teacher["projector"](teacher["backbone"](views))
    others = targets.roll(len(first), dims=0)
    return 4 - 4 * F.cosine_similarity(model["predictor"](embeddings), others, dim=1).mean()
