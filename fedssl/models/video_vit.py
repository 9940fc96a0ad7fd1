"""A vision transformer of clips, whose tokens are tubelets (Arnab 2021, "ViViT"; Tong 2022, "VideoMAE")."""

from typing import cast

from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.models.vit import grid_positions, take

_WIDTH, _HEADS, _EXPANSION = 192, 3, 4
_MEAN, _STD = 0.5, 0.25  # of pixels in [0, 1], about


class VideoTransformer(nn.Module):
    """Blocks of attention over the tubelets of a clip, all with all.

    Positions are sines and cosines of time, row and column that are not trained, as published: clips of any number of
    frames and any size can be seen. There is no class token.

    Args:
        in_channels: Channels of a clip.
        tubelet_frames: Frames of a tubelet.
        patch_size: Height and width of a tubelet in pixels.
        width: Width of a token, a multiple of 6 and of `num_heads`.
        depth: Number of blocks.
        num_heads: Heads of attention.
    """

    def __init__(
        self, in_channels: int, tubelet_frames: int, patch_size: int, width: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        self.tubelet = (tubelet_frames, patch_size, patch_size)
        self.project = nn.Conv3d(in_channels, width, self.tubelet, self.tubelet)
        self.blocks = attention_blocks(width, depth, num_heads)

    def tokens(self, clips: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the tokens of clips `[batch, num_tokens, width]`.

        Args:
            clips: `[batch, channels, frames, height, width]` in [0, 1].
            kept: `[batch, num_tokens]` int64, tubelets that are seen, numbered over time, rows and columns; None sees
                all.

        Raises:
            ValueError: A clip is no whole number of tubelets.
        """
        grid = self.grid(clips)
        embedded: Tensor = self.project((clips - _MEAN) / _STD)
        tokens = embedded.flatten(2).mT + grid_positions(grid, embedded.shape[1]).to(embedded)
        return cast(Tensor, self.blocks(tokens if kept is None else take(tokens, kept)))

    def forward(self, clips: Tensor) -> Tensor:
        """Return the tokens as a map `[batch, width, times, rows, columns]`."""
        unfolded: Tensor = self.tokens(clips).mT.unflatten(2, self.grid(clips))
        return unfolded

    def grid(self, clips: Tensor) -> tuple[int, int, int]:
        """Return how many tubelets lie in each direction.

        Raises:
            ValueError: It is no whole number.
        """
        sides = zip(("frames", "height", "width"), clips.shape[2:], self.tubelet, strict=True)
        for name, size, part in sides:
            if not size or size % part:
                raise ValueError(f"{name} must be a multiple of {part} for a transformer of tubelets, got {size}")
        times, rows, columns = (size // part for size, part in zip(clips.shape[2:], self.tubelet, strict=True))
        return times, rows, columns


def attention_blocks(width: int, depth: int, num_heads: int) -> nn.Sequential:
    """Return blocks that map tokens `[batch, num_tokens, width]` to tokens, the last of which are normalised."""
    blocks = (EncoderBlock(num_heads, width, _EXPANSION * width, 0.0, 0.0) for _ in range(depth))
    return nn.Sequential(*blocks, nn.LayerNorm(width, eps=1e-6))


def video_vit_tiny(in_channels: int = 3, tubelet_frames: int = 2, patch_size: int = 16, depth: int = 12) -> Encoder:
    """Return a transformer of clips as wide as ViT-Ti: width 192, 3 heads.

    Args:
        in_channels: Channels of a clip.
        tubelet_frames: Frames of a tubelet; those of a clip are a multiple.
        patch_size: Height and width of a tubelet in pixels; those of a clip are multiples.
        depth: Number of blocks.

    Returns:
        An encoder of 192 features, whose map has a place for each tubelet.

    Raises:
        ValueError: If an argument is below 1.
    """
    at_least(1, in_channels=in_channels, tubelet_frames=tubelet_frames, patch_size=patch_size, depth=depth)
    return Encoder(VideoTransformer(in_channels, tubelet_frames, patch_size, _WIDTH, depth, _HEADS), _WIDTH)
