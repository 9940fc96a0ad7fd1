"""What every encoder offers: a feature map, and its pooled feature."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """An encoder of clips `[batch, channels, frames, height, width]`; an image is a clip of one frame.

    Args:
        body: Maps clips to a feature map `[batch, feature_dim, frames', height', width']`.
        feature_dim: Width of the pooled feature.
    """

    def __init__(self, body: nn.Module, feature_dim: int) -> None:
        super().__init__()
        self.body = body
        self.feature_dim = feature_dim

    def feature_map(self, clips: Tensor) -> Tensor:
        """Return the last convolutional map `[batch, feature_dim, frames', height', width']`."""
        return cast(Tensor, self.body(clips))

    def map_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a clip's feature map, `[feature_dim, frames', height', width']`: it is tried once.

        Args:
            shape: The clip's, `[channels, frames, height, width]`.
        """
        training = self.training
        self.eval()  # leaves the statistics of batch normalisation as they are
        with torch.no_grad():
            found = self.feature_map(torch.zeros(1, *shape)).shape[1:]
        self.train(training)
        return tuple(found)

    def forward(self, clips: Tensor) -> Tensor:
        """Return the mean-pooled feature `[batch, feature_dim]`."""
        return self.feature_map(clips).mean(dim=(2, 3, 4))
