"""MAE: reconstruct the patches that were hidden (He 2022, "Masked Autoencoders Are Scalable Vision Learners")."""

from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models import vision_transformer

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.models.vit import VisionTransformerEncoder, sincos_positions, take
from fedssl.objectives.gmml import PixelDecoder, check_size, decoded, enlarged
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract

_EPSILON = 1e-6  # added to variances


class Mae(Objective):
    """Mean squared error of hidden patches, each standardised, predicted from those that are seen.

    A vision transformer encodes only the patches that are seen, and a small transformer decodes them beside mask
    tokens, as in the paper. A convolutional encoder cannot leave patches out: it sees an image whose hidden patches are
    zero, and pointwise layers predict from its feature map, as in SimMIM (Xie 2022). What is hidden is a function of
    the example's own numbers; it is the same in all frames of a clip.

    Args:
        image_size: Height and width of a view in pixels.
        patch_size: Height and width of a patch in pixels; for a vision transformer, its own.
        channels: Channels of a view.
        mask_ratio: Share of the patches that is hidden.
        width: Width of the decoder's tokens, a multiple of 4 and of `num_heads`; of the pointwise layers after a
            convolutional encoder.
        depth: Blocks of the decoder; a convolutional encoder has none.
        num_heads: Heads of attention of the decoder.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example")
    views: tuple[Role, ...] = ("light",)

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        mask_ratio: float = 0.75,
        width: int = 192,
        depth: int = 4,
        num_heads: int = 3,
    ) -> None:
        at_least(1, patch_size=patch_size, channels=channels, depth=depth, num_heads=num_heads)
        if image_size < 1 or image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size {patch_size}, got {image_size}")
        if channels * patch_size**2 < 2:
            raise ValueError(f"patch_size must be at least 2 where there is one channel, got {patch_size}")
        if width < 1 or width % 4 or width % num_heads:
            raise ValueError(f"width must be a multiple of 4 and of num_heads {num_heads}, got {width}")
        self.num_patches = (image_size // patch_size) ** 2
        self.num_kept = self._num_kept(mask_ratio)
        if not 0 < self.num_kept < self.num_patches:
            raise ValueError(f"mask_ratio must leave and hide some of {self.num_patches} patches, got {mask_ratio}")
        self.image_size = image_size
        self.patch_size = patch_size
        self.channels = channels
        self.width = width
        self.depth = depth
        self.num_heads = num_heads
        self.num_uniforms = self.num_patches

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the decoder, as group "head".

        Raises:
            ValueError: A vision transformer has patches or images of another size.
        """
        if not isinstance(encoder, VisionTransformerEncoder):
            return {"head": PixelDecoder(encoder, self.channels, self.image_size, self.width)}
        for name in ("patch_size", "image_size"):
            if getattr(encoder, name) != getattr(self, name):
                raise ValueError(f"{name} must be the encoder's {getattr(encoder, name)}, got {getattr(self, name)}")
        return {"head": self._decoder(encoder.feature_dim)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the error of one view."""
        clips = batch.views[0]
        check_size(clips, self.image_size)
        order, hidden = masked(batch.uniforms, self.num_kept)
        encoder = model["backbone"]
        if isinstance(encoder, VisionTransformerEncoder):
            orders = order.repeat_interleave(clips.shape[2], dim=0)  # one for each frame
            predicted: Tensor = model["head"](encoder.encode(clips, orders[:, : self.num_kept]), orders)
            predicted = predicted.unflatten(0, (len(clips), -1))
        else:
            side = self.image_size // self.patch_size
            pixels = enlarged(hidden.unflatten(1, (side, side)), self.patch_size)
            predicted = patchify(decoded(model, clips * ~pixels[:, None, None]), self.patch_size)
        return Step(hidden_error(predicted, standardised(patchify(clips, self.patch_size)), hidden), {})

    def _num_kept(self, mask_ratio: float) -> int:
        """Return how many patches are seen."""
        return int(self.num_patches * (1 - mask_ratio))

    def _decoder(self, feature_dim: int) -> nn.Module:
        """Return what decodes the tokens of a vision transformer."""
        blocks = vision_transformer.Encoder(
            1 + self.num_patches, self.depth, self.num_heads, self.width, 4 * self.width, 0.0, 0.0
        )
        with torch.no_grad():
            blocks.pos_embedding.copy_(sincos_positions(self.image_size // self.patch_size, self.width))
        return TokenDecoder(feature_dim, blocks, self.width, self.channels * self.patch_size**2)


class Decoder(nn.Module):
    """What decoders of tokens have in common: mask tokens stand where a patch was not seen.

    Args:
        feature_dim: Width of an encoded token.
        blocks: What maps tokens to tokens.
        width: Width of its tokens.
        num_pixels: Values of a patch, of all channels.
    """

    def __init__(self, feature_dim: int, blocks: nn.Module, width: int, num_pixels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(feature_dim, width)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.02))
        self.blocks = blocks
        self.predict = nn.Linear(width, num_pixels)

    def filled(self, seen: Tensor, order: Tensor) -> Tensor:
        """Return the tokens of all patches at their places, `[batch, num_patches, width]`.

        Args:
            seen: `[batch, num_kept, width]`, of the patches that come first in `order`.
            order: `[batch, num_patches]` int64, all of them.
        """
        masks = self.mask_token.expand(len(seen), order.shape[1] - seen.shape[1], -1)
        return take(torch.cat((seen, masks), dim=1), order.argsort(dim=1))


class TokenDecoder(Decoder):
    """Predicts the pixels of all patches from the tokens of those that were seen; its blocks add positions."""

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Return `[batch, num_patches, num_pixels]`, patches row by row.

        Args:
            tokens: `[batch, 1 + num_kept, feature_dim]`, the class token and the patches that come first in `order`.
            order: `[batch, num_patches]` int64, patches in the order in which they were drawn to be seen.
        """
        embedded = self.embed(tokens)
        patches = self.filled(embedded[:, 1:], order)
        mapped = self.blocks(torch.cat((embedded[:, :1], patches), dim=1))
        return cast(Tensor, self.predict(mapped[:, 1:]))


def masked(uniforms: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """Return the patches in the order in which they are drawn to be seen, int64, and which are hidden, bool.

    Args:
        uniforms: `[batch, num_patches]` in [0, 1).
        num_kept: Patches that are seen.

    Returns:
        Two times `[batch, num_patches]`.
    """
    order = uniforms.argsort(dim=1, stable=True)
    return order, order.argsort(dim=1) >= num_kept


def patchify(clips: Tensor, patch_size: int) -> Tensor:
    """Return the patches of each frame, row by row.

    Args:
        clips: `[batch, channels, frames, height, width]`, sides that are multiples of `patch_size`.
        patch_size: Height and width of a patch in pixels.

    Returns:
        `[batch, frames, num_patches, patch_size * patch_size * channels]`.
    """
    # [batch, channels, frames, rows, patch_size, columns, patch_size]
    grid: Tensor = clips.unflatten(4, (-1, patch_size)).unflatten(3, (-1, patch_size))
    return grid.permute(0, 2, 3, 5, 4, 6, 1).flatten(4).flatten(2, 3)


def standardised(patches: Tensor) -> Tensor:
    """Return patches less their mean, over the root of their unbiased variance plus 1e-6, in float32 or better.

    Args:
        patches: `[..., num_pixels]`, at least 2 pixels.
    """
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + _EPSILON).sqrt()


def hidden_error(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean squared error of the hidden patches, over all of a batch.

    Args:
        predicted: `[batch, frames, num_patches, num_pixels]`.
        target: The same of the truth.
        hidden: `[batch, num_patches]` bool, as many of each example.
    """
    predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    errors = (predicted - target).square().mean(dim=(1, 3))
    return ((errors * hidden).sum(dim=1) / hidden.sum(dim=1)).mean()
