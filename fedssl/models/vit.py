"""Vision transformers of images (Dosovitskiy 2021, "An Image is Worth 16x16 Words"), without weights."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vision_transformer import VisionTransformer

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.models.image import ImageEncoder

_WIDTH, _HEADS, _EXPANSION = 192, 3, 4
_LONGEST_WAVE = 10_000.0


class VisionTransformerEncoder(ImageEncoder):
    """torchvision's vision transformer as an encoder whose feature map holds the patch tokens.

    The pooled feature is the mean of the patch tokens; the class token takes part in attention alone. Images of another
    size than the body was made for, such as small crops, are seen with interpolated positions.

    Args:
        body: Its `heads` are not used.
        mean: Subtracted from the pixels of each channel; one number serves all.
        std: The rest is divided by it.
    """

    body: VisionTransformer

    def __init__(self, body: VisionTransformer, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(body, body.hidden_dim, mean, std)
        self.image_size: int = body.image_size
        self.patch_size: int = body.patch_size

    def encode(self, clips: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the tokens of each frame, the class token before those of the patches.

        Args:
            clips: `[batch, channels, frames, height, width]` in [0, 1].
            kept: `[batch * frames, num_kept]` int64, the patches of each frame that are seen, numbered row by row;
                None sees all.

        Returns:
            `[batch * frames, 1 + num_kept, feature_dim]`.

        Raises:
            ValueError: A side of the images is not a multiple of the patches'.
        """
        rows, columns = self._grid(clips)
        patches = self.body.conv_proj(self.normalized(clips)).flatten(2).transpose(1, 2) + self._positions(
            rows, columns
        )
        if kept is not None:
            patches = take(patches, kept)
        encoder = self.body.encoder
        first = (self.body.class_token + encoder.pos_embedding[:, :1]).expand(len(patches), -1, -1)
        tokens = encoder.dropout(torch.cat((first, patches), dim=1))
        return cast(Tensor, encoder.ln(encoder.layers(tokens)))

    def feature_map(self, clips: Tensor) -> Tensor:
        """Return the patch tokens `[batch, feature_dim, frames, height / patch_size, width / patch_size]`."""
        patches: Tensor = self.encode(clips)[:, 1:].unflatten(1, self._grid(clips)).unflatten(0, (len(clips), -1))
        return patches.permute(0, 4, 1, 2, 3)

    def _grid(self, clips: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches."""
        height, width = clips.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"height and width must be multiples of {self.patch_size}, got {height}x{width}")
        return height // self.patch_size, width // self.patch_size

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the position embeddings of a grid of patches `[rows * columns, feature_dim]`."""
        own: Tensor = self.body.encoder.pos_embedding[0, 1:]
        side = self.image_size // self.patch_size
        if (rows, columns) == (side, side):
            return own
        # products with matrices: the gradient of an interpolation is not deterministic on GPUs
        down, across = (_resampling(side, size).to(own) for size in (rows, columns))
        return torch.einsum("ri,cj,ijd->rcd", down, across, own.unflatten(0, (side, side))).flatten(0, 1)


def vit_tiny(
    in_channels: int = 3,
    image_size: int = 32,
    patch_size: int = 4,
    depth: int = 12,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.25,),
) -> Encoder:
    """Return ViT-Ti (Touvron 2021): width 192, 3 heads, with torchvision's names of tensors.

    Without the prefix "body.", the tensors are those of torchvision's `VisionTransformer` with an identity as `heads`.
    Position embeddings begin as the sines and cosines of MAE and MoCo v3, and are trained.

    Args:
        in_channels: Channels of an image.
        image_size: Height and width of an image in pixels.
        patch_size: Height and width of a patch in pixels.
        depth: Number of blocks; 12 are published.
        mean: Subtracted from pixels in [0, 1]; one number, or one a channel.
        std: What pixels are then divided by.

    Returns:
        An encoder of 192 features.

    Raises:
        ValueError: If an argument is out of range.
    """
    at_least(1, in_channels=in_channels, patch_size=patch_size, depth=depth)
    if image_size < 1 or image_size % patch_size:
        raise ValueError(f"image_size must be a multiple of patch_size {patch_size}, got {image_size}")
    body = VisionTransformer(image_size, patch_size, depth, _HEADS, _WIDTH, _EXPANSION * _WIDTH, num_classes=1)
    body.heads = nn.Identity()
    if in_channels != 3:
        body.conv_proj = nn.Conv2d(in_channels, _WIDTH, patch_size, patch_size)
        nn.init.trunc_normal_(body.conv_proj.weight, std=(in_channels * patch_size**2) ** -0.5)
        nn.init.zeros_(body.conv_proj.bias)
    with torch.no_grad():
        body.encoder.pos_embedding.copy_(sincos_positions(image_size // patch_size, _WIDTH))
    return VisionTransformerEncoder(body, mean, std)


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """Return the tokens at `places`, in their order; those at `order.argsort(dim=1)` undo an `order`.

    Args:
        tokens: `[batch, num_tokens, width]`.
        places: `[batch, num_taken]` int64.

    Returns:
        `[batch, num_taken, width]`.
    """
    return tokens.gather(1, places.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def sincos_positions(side: int, width: int) -> Tensor:
    """Return embeddings of a class token, zeros, and of a square of patches: sines and cosines of rows and columns.

    Args:
        side: Rows and columns of patches.
        width: Width of a token, a multiple of 4.

    Returns:
        `[1, 1 + side * side, width]` float32.
    """
    return torch.cat((torch.zeros(1, width), grid_positions((side, side), width)))[None]


def grid_positions(sizes: Sequence[int], width: int) -> Tensor:
    """Return embeddings of the places of a grid: an equal part of each has sines and cosines of one of its numbers.

    Args:
        sizes: Places in each direction, e.g. rows and columns.
        width: Width of an embedding, a multiple of twice the directions.

    Returns:
        `[places, width]` float32, the last direction running fastest.
    """
    half = width // len(sizes) // 2
    waves = _LONGEST_WAVE ** -(torch.arange(half, dtype=torch.float64) / half)
    parts = []
    for direction, size in enumerate(sizes):
        angles = torch.arange(size, dtype=torch.float64)[:, None] * waves
        line = torch.cat((angles.sin(), angles.cos()), dim=1)
        shape = [size if each == direction else 1 for each in range(len(sizes))]
        parts.append(line.view(*shape, -1).expand(*sizes, -1))
    return torch.cat(parts, dim=-1).flatten(0, -2).float()


def _resampling(before: int, after: int) -> Tensor:
    """Return the matrix `[after, before]` that interpolates a line linearly."""
    return F.interpolate(torch.eye(before)[None], size=after, mode="linear", align_corners=False)[0].T
