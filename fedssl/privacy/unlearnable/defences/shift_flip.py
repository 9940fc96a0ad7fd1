"""The augmentation that most classifiers of small images are trained with: a shift and a flip (He 2016)."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedssl.privacy.unlearnable.defences.defence import Defence
from fedssl.training.image_view import ImageView
from fedssl.training.transforms import crop

_VIEW = ImageView(crop_scale=None, shift=0.125, flip=0.5, jitter=0.0, grey=0.0)


@dataclass(frozen=True, slots=True)
class ShiftFlip(Defence):
    """Shifts each image by up to an eighth, mirrored beyond its edges, and flips every other one left and right."""

    def batch(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the moved images, which must be square, and the targets as they are."""
        height, width = images.shape[-2:]
        drawn = _VIEW.draw(rng.random((len(images), _VIEW.num_uniforms)), height, width, height)
        return crop(images[:, :, None], drawn.boxes, height, mirrored=True)[:, :, 0], targets
