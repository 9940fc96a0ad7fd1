"""CroCo: complete a masked frame from another, whole frame of the same clip (Weinzaepfel 2022).

"CroCo: Self-Supervised Pre-training for 3D Vision Tasks by Cross-View Completion"; the two views are frames here.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.models.vit import VisionTransformerEncoder, grid_positions
from fedssl.objectives.clips import strided, widest_stride
from fedssl.objectives.gmml import check_size
from fedssl.objectives.mae import Decoder, Mae, hidden_error, masked, patchify, standardised
from fedssl.objectives.objective import Batch, Draw, Population, Step

_OWN = 2  # random numbers that choose frames


class Croco(Mae):
    """Mean squared error of a frame's hidden patches, predicted from those that are seen and from an earlier frame.

    One vision transformer of images encodes both frames, each alone; the decoder looks from this frame at the earlier.
    It is an encoder of single frames because the paper's is, and because evaluation then sees what was trained: a
    clip's feature is the mean over its frames. A transformer of tubelets would learn from lone frames neither motion
    nor attention over time, and be evaluated on clips that need both.

    As published but for this: views are two frames at a gap, not two places of a camera, and are cropped alike, so
    that what differs is what moved; the class token, which the paper's encoder lacks, takes part in the encoder's
    attention and is not decoded; the reference is normalised once and not anew in each block, which the projections of
    its keys and values make up for. What is hidden, and the gap, are functions of the example's own numbers.

    Args:
        min_gap: Least number of frames from the reference to the target.
        max_gap: Greatest number; it is drawn among those that fit into the video.
        image_size: Height and width of a view in pixels; the encoder's own.
        patch_size: Height and width of a patch in pixels; the encoder's own.
        channels: Channels of a view.
        mask_ratio: Share of the target's patches that is hidden, rounded to the nearest number of them.
        normalised: Whether patches are standardised, each alone, before they are predicted.
        width: Width of the decoder's tokens, a multiple of 4 and of `num_heads`.
        depth: Blocks of the decoder.
        num_heads: Heads of attention of the decoder.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
        self,
        min_gap: int = 1,
        max_gap: int = 8,
        image_size: int = 224,
        patch_size: int = 16,
        channels: int = 3,
        mask_ratio: float = 0.9,
        normalised: bool = True,
        width: int = 512,
        depth: int = 8,
        num_heads: int = 16,
    ) -> None:
        super().__init__(image_size, patch_size, channels, mask_ratio, width, depth, num_heads)
        at_least(1, min_gap=min_gap)
        at_least(min_gap, max_gap=max_gap)
        self.gaps = (min_gap, max_gap)
        self.normalised = normalised
        self.min_frames = 1 + min_gap
        self.num_uniforms = _OWN + self.num_patches

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose a gap and a start; there is no answer, the target is 0.

        Args:
            num_frames: Frames of the video.
            uniforms: `[num_uniforms]` in [0, 1), of which the first two are used.

        Returns:
            Frames `[1, 2]`: the reference and the target.

        Raises:
            ValueError: If the video has no two frames at the least gap.
        """
        at_least(self.min_frames, num_frames=num_frames)
        least, most = self.gaps
        gap = least + int(uniforms[0] * (widest_stride(num_frames, 2, most) - least + 1))
        return Draw(strided(num_frames, 2, gap, uniforms[1:_OWN]), 0)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the decoder, as group "head".

        Raises:
            ValueError: The encoder is no vision transformer of images, or has patches or images of another size.
        """
        if not isinstance(encoder, VisionTransformerEncoder):
            kind = type(encoder.body).__name__
            raise ValueError(f"model must be a vision transformer of images, such as vit_tiny, got {kind}")
        return super().build(encoder, population)

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the error of one view."""
        reference, target = batch.views[0].split(1, dim=2)
        check_size(target, self.image_size)
        order, hidden = masked(batch.uniforms[:, _OWN:], self.num_kept)
        encoder = cast(VisionTransformerEncoder, model["backbone"])
        seen, whole = encoder.encode(target, order[:, : self.num_kept]), encoder.encode(reference)
        predicted: Tensor = model["head"](seen[:, 1:], order, whole[:, 1:])
        patches = patchify(target, self.patch_size)
        wanted = standardised(patches) if self.normalised else patches
        return Step(hidden_error(predicted.unsqueeze(1), wanted, hidden), {})

    def _num_kept(self, mask_ratio: float) -> int:
        return self.num_patches - round(mask_ratio * self.num_patches)

    def _decoder(self, feature_dim: int) -> nn.Module:
        return CrossDecoder(feature_dim, self.width, self.depth, self.num_heads, self.channels * self.patch_size**2)


class CrossDecoder(Decoder):
    """Predicts all patches of a target from the tokens of those that were seen and from those of a reference.

    Its blocks attend to the target, then to the reference. Positions are not trained.

    Args:
        feature_dim: Width of an encoded token.
        width: Width of its tokens.
        depth: Blocks.
        num_heads: Heads of attention.
        num_pixels: Values of a patch, of all channels.
    """

    def __init__(self, feature_dim: int, width: int, depth: int, num_heads: int, num_pixels: int) -> None:
        blocks = (
            nn.TransformerDecoderLayer(
                width, num_heads, 4 * width, 0.0, F.gelu, 1e-6, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        super().__init__(feature_dim, nn.ModuleList(blocks), width, num_pixels)
        self.norm_reference = nn.LayerNorm(width, eps=1e-6)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: Tensor, order: Tensor, reference: Tensor) -> Tensor:
        """Return `[batch, num_patches, num_pixels]`, patches row by row.

        Args:
            tokens: `[batch, num_kept, feature_dim]`, of the target's patches that come first in `order`.
            order: `[batch, num_patches]` int64, all of them.
            reference: `[batch, num_patches, feature_dim]`, row by row.
        """
        placed = self.filled(self.embed(tokens), order)
        side = round(order.shape[1] ** 0.5)
        positions = grid_positions((side, side), placed.shape[2]).to(placed)
        mapped, known = placed + positions, self.norm_reference(self.embed(reference) + positions)
        for block in cast(nn.ModuleList, self.blocks):
            mapped = block(mapped, known)
        return cast(Tensor, self.predict(self.norm(mapped)))
