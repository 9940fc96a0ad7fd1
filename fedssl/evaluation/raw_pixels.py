"""The baseline of no encoder at all: an image's feature is its pixels."""

from torch import Tensor, nn


class RawPixels(nn.Module):
    """Takes the place of an encoder, so that the images and all that is made of them are the same."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the pixels `[n, channels * height * width]` of images `[n, channels, 1, height, width]`."""
        return images.flatten(1)
