"""VideoMAE: reconstruct the tubes of a clip that were hidden (Tong 2022).

"VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video Pre-Training".
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.models.video_vit import VideoTransformer, attention_blocks
from fedssl.models.vit import grid_positions
from fedssl.objectives.clips import strided
from fedssl.objectives.gmml import check_size
from fedssl.objectives.mae import Decoder, hidden_error, masked
from fedssl.objectives.objective import Batch, Draw, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract

_EPSILON = 1e-6  # added to standard deviations
_OWN = 1  # random number that chooses frames


class VideoMae(Objective):
    """Mean squared error of hidden tubelets, each channel of each standardised, predicted from those that are seen.

    The same patches are hidden at all times of a clip, so that none can be copied from another frame. Which, is a
    function of the example's own numbers.

    Args:
        clip_frames: Frames of a clip, a multiple of `tubelet_frames`.
        stride: Frames from one of a clip to the next; 4 is published for Kinetics, 2 for Something-Something.
        image_size: Height and width of a view in pixels.
        patch_size: Height and width of a tubelet in pixels; the encoder's own.
        tubelet_frames: Frames of a tubelet; the encoder's own.
        channels: Channels of a view.
        mask_ratio: Share of the patches that is hidden, rounded down.
        width: Width of the decoder's tokens, a multiple of 6 and of `num_heads`.
        depth: Blocks of the decoder.
        num_heads: Heads of attention of the decoder.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example")
    views: tuple[Role, ...] = ("light",)

    def __init__(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
        self,
        clip_frames: int = 16,
        stride: int = 4,
        image_size: int = 224,
        patch_size: int = 16,
        tubelet_frames: int = 2,
        channels: int = 3,
        mask_ratio: float = 0.9,
        width: int = 96,
        depth: int = 4,
        num_heads: int = 3,
    ) -> None:
        at_least(1, stride=stride, patch_size=patch_size, tubelet_frames=tubelet_frames, channels=channels)
        at_least(1, depth=depth, num_heads=num_heads)
        for name, size, part in (
            ("image_size", image_size, patch_size),
            ("clip_frames", clip_frames, tubelet_frames),
            ("width", width, np.lcm(6, num_heads)),
        ):
            if size < 1 or size % part:
                raise ValueError(f"{name} must be a multiple of {part}, got {size}")
        if tubelet_frames * patch_size**2 < 2:
            raise ValueError(f"patch_size must be at least 2 where tubelets have one frame, got {patch_size}")
        self.num_patches = (image_size // patch_size) ** 2
        self.num_kept = self.num_patches - int(self.num_patches * mask_ratio)
        if not 0 < self.num_kept < self.num_patches:
            raise ValueError(f"mask_ratio must leave and hide some of {self.num_patches} patches, got {mask_ratio}")
        self.tubelet = (tubelet_frames, patch_size, patch_size)
        self.grid = (clip_frames // tubelet_frames, image_size // patch_size, image_size // patch_size)
        self.stride = stride
        self.image_size = image_size
        self.channels = channels
        self.width = width
        self.depth = depth
        self.num_heads = num_heads
        self.min_frames = clip_frames
        self.num_uniforms = _OWN + self.num_patches

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose a start; there is no answer, the target is 0.

        Args:
            num_frames: Frames of the video.
            uniforms: `[num_uniforms]` in [0, 1), of which the first is used.

        Returns:
            Frames `[1, clip_frames]`.

        Raises:
            ValueError: If the video is shorter than one clip.
        """
        return Draw(strided(num_frames, self.min_frames, self.stride, uniforms[:_OWN]), 0)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the decoder, as group "head".

        Raises:
            ValueError: The encoder is not a transformer of the same tubelets.
        """
        if not isinstance(encoder.body, VideoTransformer):
            raise ValueError(
                f"model must be a transformer of tubelets, such as video_vit_tiny, got {type(encoder.body).__name__}"
            )
        if encoder.body.tubelet != self.tubelet:
            wanted, got = encoder.body.tubelet[:2], self.tubelet[:2]
            raise ValueError(f"tubelet_frames and patch_size must be the encoder's {wanted}, got {got}")
        blocks = attention_blocks(self.width, self.depth, self.num_heads)
        num_pixels = self.channels * int(np.prod(self.tubelet))
        return {"head": TubeletDecoder(encoder.feature_dim, blocks, self.width, num_pixels)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the error of one view."""
        clips = batch.views[0]
        check_size(clips, self.image_size)
        ranked, hidden = masked(batch.uniforms[:, _OWN:], self.num_kept)
        order = torch.cat([self._at_all_times(patches) for patches in ranked.tensor_split((self.num_kept,), 1)], dim=1)
        body = cast(VideoTransformer, cast(Encoder, model["backbone"]).body)
        predicted: Tensor = model["head"](
            body.tokens(clips, order[:, : self.grid[0] * self.num_kept]), order, self.grid
        )
        target = standardised(tubelets(clips, *self.tubelet[:2])).flatten(3)
        return Step(hidden_error(predicted.view(target.shape), target, hidden), {})

    def _at_all_times(self, patches: Tensor) -> Tensor:
        """Return the numbers `[batch, times * patches]` of the tubelets of patches `[batch, patches]`."""
        times = torch.arange(self.grid[0], device=patches.device)[:, None] * self.num_patches
        return (patches[:, None] + times).flatten(1)


class TubeletDecoder(Decoder):
    """Predicts the pixels of all tubelets from the tokens of those that were seen; positions are not trained."""

    def forward(self, tokens: Tensor, order: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Return `[batch, num_tubelets, num_pixels]`, in the order of time, rows and columns.

        Args:
            tokens: `[batch, num_seen, feature_dim]`, of the tubelets that come first in `order`.
            order: `[batch, num_tubelets]` int64, all of them.
            grid: Tubelets in each direction.
        """
        placed = self.filled(self.embed(tokens), order)
        positions = grid_positions(grid, placed.shape[2]).to(placed)
        return cast(Tensor, self.predict(self.blocks(placed + positions)))


def tubelets(clips: Tensor, frames: int, patch_size: int) -> Tensor:
    """Return the tubelets of clips, at each time row by row.

    Args:
        clips: `[batch, channels, frames, height, width]`, of whole numbers of tubelets.
        frames: Frames of a tubelet.
        patch_size: Its height and width in pixels.

    Returns:
        `[batch, times, patches, frames * patch_size * patch_size, channels]`.
    """
    # [batch, channels, times, frames, rows, patch_size, columns, patch_size]
    grid: Tensor = clips.unflatten(4, (-1, patch_size)).unflatten(3, (-1, patch_size)).unflatten(2, (-1, frames))
    return grid.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4, 6).flatten(2, 3)


def standardised(parts: Tensor) -> Tensor:
    """Return each channel of tubelets less its mean, over its unbiased deviation plus 1e-6, in float32 or better.

    Args:
        parts: `[..., num_pixels, channels]`, at least 2 pixels.
    """
    parts = parts.to(torch.promote_types(parts.dtype, torch.float32))
    variance, mean = torch.var_mean(parts, dim=-2, keepdim=True)
    return (parts - mean) / (variance.sqrt() + _EPSILON)
