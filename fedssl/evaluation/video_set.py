"""The videos that an evaluation reads: random clips to learn from, spread ones to answer for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.data.clips import random
from fedssl.data.dataset import Dataset
from fedssl.evaluation.features import ClipProtocol, encode_videos, mean_probability, to_clips
from fedssl.evaluation.image_set import Views
from fedssl.seeding import uniforms


@dataclass(frozen=True, slots=True)
class VideoSet:
    """Some videos of a dataset, of any sizes.

    Attributes:
        dataset: Videos of at least one frame.
        indices: `[num_videos]` which of them.
        protocol: The clips that features and answers are made of.
        views: What is done to a random clip, and its draws.
        device: Where pixels are wanted.
    """

    dataset: Dataset
    indices: NDArray[np.int64]
    protocol: ClipProtocol
    views: Views
    device: torch.device

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels `[num_videos]`."""
        return self.dataset.labels[self.indices]

    def subset(self, places: NDArray[np.int64]) -> Self:
        """Return the videos at `places`."""
        return replace(self, indices=self.indices[places])

    def view(self, places: NDArray[np.int64], *name: int | str) -> Tensor:
        """Return a clip of each video from anywhere in it, cropped and flipped; the same name gives the same pixels.

        Args:
            places: `[n]`; what becomes of a video does not depend on the others.
            name: Names the draws.

        Returns:
            `[n, channels, clip_frames, height, width]` float32 in [0, 1].
        """
        path, rows = ("evaluation", "view", *name), self.indices[places]
        drawn = uniforms(self.views.seed, *path, rows=rows, columns=1 + self.views.augmentation.num_uniforms)
        return torch.cat([self._clip(int(index), own) for index, own in zip(rows, drawn, strict=True)])

    def encoded(self, network: nn.Module, batch_size: int, merge: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        """Return what `network` makes of every video; see `encode_videos`."""
        return encode_videos(network, self.dataset, self.indices, self.protocol, batch_size, self.device, merge)

    def answers(self, classifier: nn.Module, batch_size: int) -> NDArray[np.float32]:
        """Return the mean probabilities `[num_videos, num_classes]` over the clips of every video."""
        return self.encoded(classifier, batch_size, mean_probability)

    def _clip(self, index: int, drawn: NDArray[np.float64]) -> Tensor:
        video = self.dataset.read(index)
        frames = random(len(video), self.protocol.clip_frames, self.protocol.clip_stride, drawn[:1])
        return self.views.augmentation(to_clips(video, frames, self.device), drawn[None, 1:], "light", 0)
