"""A linear separator through the gaps between features, most of them without labels.

Joachims 1999, "Transductive Inference for Text Classification using Support Vector Machines"; by gradients as in
Chapelle & Zien 2005, "Semi-Supervised Classification by Low Density Separation".
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedssl.checks import above, at_least
from fedssl.evaluation.linear_probe import LinearMap, standardisation
from fedssl.evaluation.subsets import is_amount


@dataclass(frozen=True, slots=True)
class LowDensity:
    """One separator f(x) = w x + b a class, against the other classes.

    It minimises l2 / 2 |w|² + mean max(0, 1 - y f(x)) of the labelled + weight mean max(0, 1 - |f(u)|) of the others,
    where the mean of f over the others is that of y = ±1 over the labelled.

    Args:
        labels: Labels that are known, "N%" or "N per class".
        weight: Of the term of the unlabelled features; 0 leaves them out, which is the support vector machine.
        l2: Strength of the penalty.
        steps: Steps of Adam on all features, first without the unlabelled ones and then again with a weight that
            rises to `weight`.
        learning_rate: Of Adam, falling to 0 along a cosine.

    Raises:
        ValueError: If an argument is out of range.
    """

    labels: str = "1%"
    weight: float = 1.0
    l2: float = 1e-3
    steps: int = 300
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        if not is_amount(self.labels):
            raise ValueError(f'labels must be "N%" of at most 100, or "N per class", got {self.labels}')
        at_least(0, weight=self.weight)
        at_least(1, steps=self.steps)
        above(0, l2=self.l2, learning_rate=self.learning_rate)

    def fit(self, known: Tensor, targets: Tensor, unknown: Tensor, num_classes: int) -> tuple[LinearMap, LinearMap]:
        """Return the separators of the labelled features alone, and those of all.

        Args:
            known: `[num_known, d]` labelled features.
            targets: `[num_known]` their labels.
            unknown: `[num_unknown, d]` the others; there may be none.
            num_classes: Number of classes.
        """
        mean, scale = standardisation(torch.cat((known, unknown)))
        rows, others = ((part.double() - mean) / scale for part in (known, unknown))
        signs = 2.0 * F.one_hot(targets, num_classes).double() - 1.0
        nothing = signs.new_zeros(rows.shape[1], num_classes), signs.new_zeros(num_classes)
        alone = self._descend(LinearMap(*nothing), rows, signs, others[:0])
        both = self._descend(alone, rows, signs, others) if self.weight > 0 and len(others) else alone
        return alone.on_raw(mean, scale), both.on_raw(mean, scale)

    def _descend(self, start: LinearMap, rows: Tensor, signs: Tensor, others: Tensor) -> LinearMap:
        """Return what is reached from `start`; `signs` are the y of `rows`, `[num_known, num_classes]`."""
        weight, bias = (value.clone().requires_grad_() for value in (start.weight, start.bias))
        optimizer = torch.optim.Adam([weight, bias], lr=self.learning_rate)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for step in range(self.steps):
            balanced = _balanced(weight, bias, signs, others)
            hinges = torch.relu(1 - signs * (rows @ weight + balanced)).mean(dim=0).sum()
            loss = self.l2 / 2 * weight.square().sum() + hinges
            if len(others):
                gaps = torch.relu(1 - (others @ weight + balanced).abs()).mean(dim=0).sum()
                loss = loss + self.weight * (step + 1) / self.steps * gaps
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            cosine.step()
        return LinearMap(weight.detach(), _balanced(weight, bias, signs, others).detach())


def _balanced(weight: Tensor, bias: Tensor, signs: Tensor, others: Tensor) -> Tensor:
    """Return the bias at which the mean of f over `others` is that of `signs`; `bias` where there are no others."""
    return signs.mean(dim=0) - others.mean(dim=0) @ weight if len(others) else bias
