"""Strong augmentation against protection, drawn once or so that the model errs most (UEraser, Qin 2023).

"Learning the Unlearnable: Adversarial Augmentations Suppress Unlearnable Example Attacks". Its smooth random changes of
brightness and contrast are not made here: views are RandAugment's, with shuffled channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least
from fedssl.evaluation.features import evaluating
from fedssl.privacy.unlearnable.defences.defence import Defence
from fedssl.privacy.unlearnable.noise import LEVELS
from fedssl.training.rand_augment import render_strong
from fedssl.training.strong_view import StrongView

_VIEW = StrongView(shift=0.0, flip=0.0)


@dataclass(frozen=True, slots=True)
class Strong(Defence):
    """Makes a strong view of each image: two operations of RandAugment, then cutout."""

    def batch(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the views, and the targets as they are."""
        return _views(images, rng), targets


@dataclass(frozen=True, slots=True)
class UEraser(Defence):
    """Makes several strong views of each image, with shuffled channels, and trains on that of the largest loss.

    Args:
        draws: Views of an image; 5 are published.

    Raises:
        ValueError: There is not one.
    """

    draws: int = 5

    def __post_init__(self) -> None:
        at_least(1, draws=self.draws)

    def attack(self, model: nn.Module, images: Tensor, targets: Tensor, rng: np.random.Generator) -> Tensor:
        """Return each image's view of the largest loss."""
        views = torch.stack([_shuffled(_views(images, rng), rng) for _ in range(self.draws)])
        with evaluating(model), torch.no_grad():
            losses = torch.stack([F.cross_entropy(model(each), targets, reduction="none") for each in views])
        return views[losses.argmax(dim=0), torch.arange(len(images), device=images.device)]


def _views(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return strong views, as large as the images, of square images.

    Raises:
        ValueError: The images are not square.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"width must be {height} as the height for strong views, got {width}")
    drawn = _VIEW.draw(rng.random((len(images), _VIEW.num_uniforms)), height, width, height)
    return render_strong((images * LEVELS).round().byte()[:, :, None], drawn, height)[:, :, 0]


def _shuffled(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return images with their channels in an order of each image's own."""
    orders = torch.from_numpy(rng.random(images.shape[:2]).argsort(axis=1)).to(images.device)
    return images.gather(1, orders[:, :, None, None].expand_as(images))
