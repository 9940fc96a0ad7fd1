"""The images that an evaluation reads, at the size the encoder sees, and their features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.data.dataset import Dataset
from fedssl.errors import DataError
from fedssl.evaluation.features import evaluating, joined
from fedssl.seeding import uniforms
from fedssl.training.augment import ClipAugmentation, resize


@dataclass(frozen=True, slots=True)
class Views:
    """What an evaluation does to an image where it asks for a view of it: a crop and a flip, drawn by name.

    Attributes:
        augmentation: Its height and width are those that the encoder sees.
        seed: Root of the draws.
    """

    augmentation: ClipAugmentation
    seed: int

    @classmethod
    def of(cls, height: int, width: int, crop_scale: Sequence[float], flip: float, seed: int) -> "Views":
        """Return the views of one size, without changes of colour."""
        return cls(ClipAugmentation(height, width, crop_scale, flip, brightness=0.0, contrast=0.0), seed)


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Some images of a dataset, all of one size.

    Attributes:
        dataset: Examples of one frame.
        indices: `[num_images]` which of them.
        views: Sizes and draws.
        device: Where pixels are wanted.
    """

    dataset: Dataset
    indices: NDArray[np.int64]
    views: Views
    device: torch.device

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels `[num_images]`."""
        return self.dataset.labels[self.indices]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def subset(self, places: NDArray[np.int64]) -> Self:
        """Return the images at `places`."""
        return replace(self, indices=self.indices[places])

    def clean(self, places: NDArray[np.int64]) -> Tensor:
        """Return the images at `places`, only resized: `[n, channels, 1, height, width]` float32 in [0, 1]."""
        size = self.views.augmentation
        return resize(self._read(places), size.height, size.width)

    def view(self, places: NDArray[np.int64], *name: int | str) -> Tensor:
        """Return a view of each image, shaped as `clean`; the same name gives the same pixels.

        Args:
            places: `[n]`; what an image becomes does not depend on the others.
            name: Names the draws.
        """
        augmentation, rows = self.views.augmentation, self.indices[places]
        path = ("evaluation", "view", *name)
        drawn = uniforms(self.views.seed, *path, rows=rows, columns=augmentation.num_uniforms)
        return augmentation(self._read(places), drawn, "light", 0)

    def answers(self, classifier: nn.Module, batch_size: int) -> NDArray[np.float32]:
        """Return the logits `[num_images, num_classes]` of every image; see `image_features`."""
        return image_features(classifier, self, batch_size)

    def _read(self, places: NDArray[np.int64]) -> Tensor:
        images = [self._image(int(index)) for index in self.indices[places]]
        # [n, 1, height, width, channels] -> [n, channels, 1, height, width]
        return torch.from_numpy(np.stack(images)).to(self.device).permute(0, 4, 1, 2, 3).contiguous()

    def _image(self, index: int) -> NDArray[np.uint8]:
        image = self.dataset.read(index)
        if len(image) != 1:
            raise DataError(f"evaluation=images: example {index} has {len(image)} frames, an image has one")
        return image


def image_features(
    encoder: nn.Module, images: ImageSet, batch_size: int, view: tuple[int | str, ...] | None = None
) -> NDArray[np.float32]:
    """Return the features of every image, in order.

    Args:
        encoder: Maps `[n, channels, 1, height, width]` to `[n, d]`; lies on the images' device, its modes are restored.
        images: At least one.
        batch_size: Images that the encoder takes at once; it changes the memory used, not the features.
        view: Name of the view that is encoded; None encodes the images as they are.

    Returns:
        `[num_images, d]` float32.

    Raises:
        DataError: There is no image, or an example is not one.
        FloatingPointError: A feature is not a finite number.
    """
    if not len(images):
        raise DataError("evaluation=images: the data has no examples to evaluate on")
    features = []
    with evaluating(encoder), torch.no_grad():
        for first in range(0, len(images), batch_size):
            places = np.arange(first, min(first + batch_size, len(images)))
            pixels = images.clean(places) if view is None else images.view(places, *view)
            features.append(encoder(pixels).float().cpu().numpy())
    return joined(features)
