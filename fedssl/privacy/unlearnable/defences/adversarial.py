"""Adversarial training: learn from the worst images nearby (Madry 2018).

"Towards Deep Learning Models Resistant to Adversarial Attacks".
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, within
from fedssl.evaluation.features import evaluating
from fedssl.privacy.unlearnable.defences.defence import Defence
from fedssl.privacy.unlearnable.noise import LEVELS


@dataclass(frozen=True, slots=True)
class Adversarial(Defence):
    """Climbs the loss by steps of the gradient's sign, from anywhere nearby; batch normalisation keeps its statistics.

    Args:
        epsilon: Largest change of a pixel, in levels of 255.
        step: Length of a step, in levels of 255.
        steps: Number of steps; each costs about as much as the training step itself.

    Raises:
        ValueError: An argument is out of range.
    """

    epsilon: float = 8.0
    step: float = 2.0
    steps: int = 7

    def __post_init__(self) -> None:
        within(0, LEVELS, epsilon=self.epsilon)
        above(0, step=self.step)
        at_least(1, steps=self.steps)

    def attack(self, model: nn.Module, images: Tensor, targets: Tensor, rng: np.random.Generator) -> Tensor:
        """Return images in 0 to 1, none of whose pixels is further than `epsilon` away."""
        epsilon, step = self.epsilon / LEVELS, self.step / LEVELS
        low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
        start = torch.from_numpy(rng.random(images.shape, dtype=np.float32)).to(images.device)
        found = torch.lerp(low, high, start)
        with evaluating(model), torch.enable_grad():
            for _ in range(self.steps):
                found.requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(found), targets), found)
                found = (found.detach() + step * gradient.sign()).clamp(low, high)
        return found
