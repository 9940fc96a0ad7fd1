"""Unlearnable clusters: a pattern for each cluster that looks to a surrogate like another cluster (Zhang 2023).

"Unlearnable Clusters: Towards Label-Agnostic Unlearnable Examples".
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedssl.checks import above, at_least, one_of
from fedssl.privacy.unlearnable.cut import cut
from fedssl.privacy.unlearnable.groups import by_cluster
from fedssl.privacy.unlearnable.noise import LEVELS, Noise, levels
from fedssl.privacy.unlearnable.noise_generator import SMALLEST, NoiseGenerator
from fedssl.privacy.unlearnable.protector import Owned, Protector
from fedssl.privacy.unlearnable.surrogate import Surrogate, features_of, make_surrogate, to_pixels
from fedssl.seeding import generator, torch_stream, uniforms
from fedssl.training.image_view import ImageView

_VIEW = ImageView(crop_scale=(0.75, 1.0), jitter=0.0, grey=0.0)
_WEIGHT_DECAY, _LAST_RATE = 5e-4, 1e-6
Loss = Literal["kl", "l2", "cosine"]
TargetMap = Literal["shift", "farthest"]


@dataclass(frozen=True, kw_only=True)
class UnlearnableClusters(Protector):
    """Clusters images by a surrogate's features and moves each cluster's towards the centre of another one.

    Whoever trains on them learns which pattern goes with which cluster instead of what the images show, whatever the
    labels are: none is needed to make the noise.

    Attributes:
        num_clusters: Of the images, and patterns.
        surrogate: See `make_surrogate`.
        surrogate_epochs: For which None trains, on images with random noise of up to twice the budget; not read
            otherwise.
        target: "shift" moves each cluster to the next one, "farthest" maximises the sum of the distances.
        loss: From the wrong centre to a feature: "kl" is the Kullback-Leibler divergence of their softmaxes, "l2" the
            squared distance, "cosine" one minus the cosine.
        images: What a pattern is fitted on: "all" images, or its cluster's "own".
        epochs: Over these images.
        batch_size: Images of a step.
        learning_rate: Of Adam at the beginning; it falls along half a cosine.
        width: See `NoiseGenerator`.
        blocks: See `NoiseGenerator`.
        reference_compat: As the authors' code does: patterns in [-1, 1] are cut off at the budget, instead of scaled
            to it. What is cut off gets no gradient.

    Raises:
        ValueError: An argument is out of range.
    """

    budget: int = 16
    num_clusters: int = 10
    surrogate: str | None = None
    surrogate_epochs: int = 4
    target: TargetMap = "shift"
    loss: Loss = "kl"
    images: Literal["all", "own"] = "all"
    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 1e-4
    width: int = 64
    blocks: int = 6
    reference_compat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, num_clusters=self.num_clusters)
        at_least(1, surrogate_epochs=self.surrogate_epochs, epochs=self.epochs, batch_size=self.batch_size)
        at_least(1, width=self.width)
        at_least(0, blocks=self.blocks)
        above(0, learning_rate=self.learning_rate)
        one_of(("shift", "farthest"), target=self.target)
        one_of(("kl", "l2", "cosine"), loss=self.loss)
        one_of(("all", "own"), images=self.images)

    def fit(self, owned: Owned) -> Noise:
        """Return one pattern a cluster; without labels.

        Raises:
            ConfigError: The surrogate is not that of a finished run.
            ValueError: The surrogate cannot be had, images are too small, too few or all alike.
        """
        height, width, channels = owned.images.shape[1:]
        if min(height, width) < SMALLEST:
            raise ValueError(f"images must be at least {SMALLEST} pixels high and wide, got {height}x{width}")
        surrogate = make_surrogate(self.surrogate, owned, self.surrogate_epochs, 2 * self.budget / LEVELS)
        features = features_of(surrogate, owned)
        rows, centres = clusters_of(features, self.num_clusters, owned.seed)
        targets = torch.from_numpy(centres[target_map(centres, self.target)]).to(owned.device)
        start = generator(owned.seed, "unlearnable", "picture").random((1, channels, height, width), dtype=np.float32)
        picture = torch.from_numpy(start).to(owned.device)
        patterns = []
        for cluster, target in enumerate(targets):
            shown = owned if self.images == "all" else replace(owned, images=owned.images[rows == cluster])
            patterns.append(self._pattern(shown, surrogate, target, picture, cluster))
            owned.say("patterns", cluster + 1, len(targets))
        return Noise(levels(torch.cat(patterns), self.budget), rows, self.budget)

    def _pattern(self, owned: Owned, surrogate: Surrogate, target: Tensor, picture: Tensor, cluster: int) -> Tensor:
        """Return the pattern `[1, channels, height, width]` that moves images to `target` `[dim]`."""
        with torch_stream(owned.seed, "unlearnable", "generator", cluster):
            network = NoiseGenerator(picture.shape[1], self.width, self.blocks).to(owned.device).train()
        number = len(owned.images)
        steps_an_epoch = math.ceil(number / self.batch_size)
        optimizer = torch.optim.Adam(network.parameters(), self.learning_rate, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * steps_an_epoch, _LAST_RATE)
        order = generator(owned.seed, "unlearnable", "order", cluster)
        for epoch in range(self.epochs):
            drawn = uniforms(
                owned.seed, "unlearnable", "view", cluster, epoch, rows=np.arange(number), columns=_VIEW.num_uniforms
            )
            for places in np.array_split(order.permutation(number), steps_an_epoch):
                images = _viewed(to_pixels(owned.images[places], owned.device), drawn[places])
                moved = (images + self._bounded(network(picture))).clamp(0, 1)
                loss = distance(surrogate(moved), target.expand(len(moved), -1), self.loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            return self._bounded(network(picture))

    def _bounded(self, pattern: Tensor) -> Tensor:
        """Return a pattern in [-1, 1] within the budget."""
        limit = self.budget / LEVELS
        return pattern.clamp(-limit, limit) if self.reference_compat else limit * pattern


def clusters_of(
    features: NDArray[np.float32], num_clusters: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the cluster of each feature `[n]`, and the centres `[p, dim]` of the clusters that are not empty.

    Raises:
        ValueError: All features are alike, or there are fewer than clusters.
    """
    rows = by_cluster(features, num_clusters, seed)
    rows = np.unique(rows, return_inverse=True)[1].astype(np.int64)
    centres = np.stack([features[rows == row].mean(axis=0) for row in range(rows.max() + 1)])
    if len(centres) < 2:
        raise ValueError("images must have features that differ, got all alike")
    return rows, centres


def target_map(centres: NDArray[np.float32], kind: TargetMap) -> NDArray[np.int64]:
    """Return which cluster each is moved to `[p]`: a permutation that leaves none where it is.

    Args:
        centres: `[p, dim]` of at least two clusters.
        kind: See `UnlearnableClusters`.
    """
    from scipy.optimize import linear_sum_assignment

    if kind == "shift":
        return np.roll(np.arange(len(centres)), -1)
    distances = np.linalg.norm(centres[:, None].astype(np.float64) - centres, axis=2)
    np.fill_diagonal(distances, -1 - distances.sum())  # worse than all others together
    return np.asarray(linear_sum_assignment(distances, maximize=True)[1], dtype=np.int64)


def distance(features: Tensor, centres: Tensor, loss: Loss) -> Tensor:
    """Return the mean distance of features `[n, dim]` from their centres `[n, dim]`, see `UnlearnableClusters`."""
    if loss == "kl":
        return F.kl_div(features.log_softmax(dim=1), centres.softmax(dim=1), reduction="batchmean")
    if loss == "l2":
        return (features - centres).square().sum(dim=1).mean()
    return 1 - F.cosine_similarity(features, centres).mean()


def _viewed(images: Tensor, drawn: NDArray[np.float64]) -> Tensor:
    """Return images cut and mirrored, of their own size."""
    height, width = images.shape[2:]
    return cut(images, _VIEW.draw(drawn, height, width, height).boxes, height, width)
