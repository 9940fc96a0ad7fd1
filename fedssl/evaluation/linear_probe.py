"""What a linear classifier reads from frozen features.

Alain & Bengio 2017, "Understanding Intermediate Layers Using Linear Classifier Probes".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least, one_of
from fedssl.data.split import by_label
from fedssl.evaluation.features import mean_probability
from fedssl.evaluation.sgd import Classifier, Draw, SgdSchedule, train_classifier
from fedssl.seeding import generator

_NEGLIGIBLE = 1e-6  # of the largest standard deviation: what varies less is round-off


@dataclass(frozen=True, slots=True)
class LinearMap:
    """Logits from features.

    Attributes:
        weight: `[d, num_classes]`.
        bias: `[num_classes]`.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits `[..., num_classes]` of features `[..., d]`."""
        return features.to(self.weight.dtype) @ self.weight + self.bias

    def on_raw(self, mean: Tensor, scale: Tensor) -> "LinearMap":
        """Return the same map for features that have not been standardised by `mean` and `scale` `[d]`."""
        return LinearMap(self.weight / scale[:, None], self.bias - (mean / scale) @ self.weight)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of `features` whose label `[n]` has the largest answer.

        The answer for features `[n, d]` is the logit, for those of videos `[n, num_clips, d]` the mean probability.
        """
        logits = self(features)
        answers = mean_probability(logits) if logits.ndim == 3 else logits
        return int((answers.argmax(dim=1) == labels).sum()) / len(labels)


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A linear classifier on standardised features; its strength is chosen on a part of the training features.

    Args:
        mode: "lbfgs" is multinomial logistic regression, "ridge" least squares in closed form, "sgd" gradient steps
            as they are usual for large encoders.
        l2: Strengths of the penalty to choose from, relative to a mean over examples; for "lbfgs" and "ridge".
        held_out: Share of each class of the training features that the choice is made on.
        learning_rates: Learning rates to choose from, for "sgd".
        epochs: Passes over the training features, for "sgd".
        batch_size: Examples of a step, for "sgd".
        augment: Whether "sgd" sees the features of a new crop and flip in every step, which takes the encoder a pass
            each; the choice is made without.

    Raises:
        ValueError: If an argument is out of range.
    """

    mode: Literal["lbfgs", "ridge", "sgd"] = "lbfgs"
    l2: Sequence[float] = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
    held_out: float = 0.2
    learning_rates: Sequence[float] = (0.1,)
    epochs: int = 100
    batch_size: int = 256
    augment: bool = False

    def __post_init__(self) -> None:
        for name in ("l2", "learning_rates"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if not values or min(values) <= 0:
                raise ValueError(f"{name} must be numbers above 0, got {list(values)}")
        at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        one_of(("lbfgs", "ridge", "sgd"), mode=self.mode)
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be above 0 and below 1, got {self.held_out}")

    @property
    def strengths(self) -> Sequence[float]:
        """What is chosen from: penalties or learning rates."""
        return self.learning_rates if self.mode == "sgd" else self.l2

    def fit(self, features: Tensor, labels: Tensor, num_classes: int, seed: int, draw: Draw | None = None) -> LinearMap:
        """Return the classifier of the strength that does best on held-out training features.

        Args:
            features: `[n, d]` of the training examples, or `[n, num_clips, d]` of videos: each clip is an example with
                its video's label, and clips of one video are never both learned from and held out.
            labels: `[n]`.
            num_classes: Number of classes; one without examples is never answered.
            seed: Root of what is random.
            draw: Features of views of the training examples, for `augment`.
        """
        chosen = self.strengths[self.choose(features, labels, num_classes, seed)]
        return self.path(features, labels, num_classes, seed, (chosen,), draw if self.augment else None)[0]

    def choose(self, features: Tensor, labels: Tensor, num_classes: int, seed: int) -> int:
        """Return the place of the best of `strengths`, of equal ones the first; arguments as of `fit`."""
        if len(self.strengths) == 1:
            return 0
        parts = by_label(labels.cpu().numpy(), self.held_out, generator(seed, "evaluation", "held_out"))
        train, held = (torch.from_numpy(part).to(labels.device) for part in parts)
        maps = self.path(features[train], labels[train], num_classes, seed, self.strengths)
        return int(np.argmax([each.accuracy(features[held], labels[held]) for each in maps]))

    def path(
        self,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        seed: int,
        strengths: Sequence[float],
        draw: Draw | None = None,
    ) -> list[LinearMap]:
        """Return the classifier of each strength; arguments as of `fit`."""
        features = features.flatten(0, -2)
        labels = labels.repeat_interleave(len(features) // len(labels))
        mean, scale = standardisation(features)
        rows = (features.double() - mean) / scale
        if self.mode == "ridge":
            solved = _ridge(rows, labels, num_classes, strengths)
        elif self.mode == "lbfgs":
            solved = _logistic(rows, labels, num_classes, strengths)
        else:
            views = _rows_of(rows.float()) if draw is None else _standardised(draw, mean, scale)
            start = torch.zeros(rows.shape[1], device=rows.device)
            solved = [self._by_steps(views, start, labels, num_classes, rate, seed) for rate in strengths]
        return [each.on_raw(mean, scale) for each in solved]

    def _by_steps(
        self, draw: Draw, zeros: Tensor, labels: Tensor, num_classes: int, rate: float, seed: int
    ) -> LinearMap:
        steps = self.epochs * math.ceil(len(labels) / self.batch_size)
        classifier = Classifier(nn.Identity(), zeros, zeros + 1, num_classes)
        train_classifier(classifier, draw, labels, SgdSchedule(steps, self.batch_size, rate), seed)
        return LinearMap(classifier.weight.detach().double(), classifier.bias.detach().double())


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation `[d]` of features `[n, d]`, float64; 1 where nothing varies."""
    rows = features.double()
    scale = rows.std(dim=0, unbiased=False)
    return rows.mean(dim=0), torch.where(scale > _NEGLIGIBLE * scale.max(), scale, torch.ones_like(scale))


def ridge(features: Tensor, targets: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """Return the W that minimises |X W - Y|² + penalty |W|², in closed form, for each penalty.

    Args:
        features: X `[n, d]` float64.
        targets: Y `[n, outputs]` float64.
        penalties: Numbers above 0.

    Returns:
        `[d, outputs]` each: the inverse of (X'X + penalty I) times X'Y, or what equals it by a system of n when that
        is the smaller.
    """
    number, dim = features.shape
    primal = dim <= number
    gram = features.T @ features if primal else features @ features.T
    right = features.T @ targets if primal else targets
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solutions = [torch.linalg.solve(gram + penalty * identity, right) for penalty in penalties]
    return solutions if primal else [features.T @ solution for solution in solutions]


def _ridge(rows: Tensor, labels: Tensor, num_classes: int, strengths: Sequence[float]) -> list[LinearMap]:
    """Regress the classes, one-hot and centred, on rows of mean zero."""
    targets = F.one_hot(labels, num_classes).double()
    share = targets.mean(dim=0)
    weights = ridge(rows, targets - share, [strength * len(rows) for strength in strengths])
    return [LinearMap(weight, share) for weight in weights]


def _logistic(rows: Tensor, labels: Tensor, num_classes: int, strengths: Sequence[float]) -> list[LinearMap]:
    """Minimise the mean cross-entropy plus half of strength times |W|², each from where the one before ended."""
    start = rows.new_zeros(rows.shape[1] + 1, num_classes)
    maps = []
    for strength in strengths:
        start = logistic(rows, labels, start, strength)
        maps.append(LinearMap(start[:-1], start[-1]))
    return maps


def logistic(features: Tensor, labels: Tensor, start: Tensor, l2: float) -> Tensor:
    """Return weights and biases `[d + 1, num_classes]` of multinomial logistic regression; biases are not penalised.

    Args:
        features: `[n, d]` float64.
        labels: `[n]`.
        start: `[d + 1, num_classes]` where the search begins.
        l2: Strength of the penalty, beside a mean over examples.
    """
    values = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [values],
        max_iter=200,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ values[:-1] + values[-1], labels) + l2 / 2 * values[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return values.detach()


def _rows_of(features: Tensor) -> Draw:
    def rows(places: NDArray[np.int64], step: int) -> Tensor:
        return features[torch.from_numpy(places).to(features.device)]

    return rows


def _standardised(draw: Draw, mean: Tensor, scale: Tensor) -> Draw:
    def standardised(places: NDArray[np.int64], step: int) -> Tensor:
        return ((draw(places, step).double() - mean) / scale).float()

    return standardised
