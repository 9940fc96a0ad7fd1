"""torchvision's hierarchical transformers of clips, without weights."""

from collections import OrderedDict
from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torchvision.models import video
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.ops import Permute

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.models.video import RGB, deterministic, with_in_channels

_CHANNELS_FIRST = [0, 4, 1, 2, 3]
_WIDTHS, _HEADS, _DEPTHS, _STRIDES = (96, 192, 384, 768), (1, 2, 4, 8), (1, 2, 11, 2), (8, 4, 2, 1)
_KERNEL = [3, 3, 3]
_STOCHASTIC_DEPTH = 0.2


def swin3d_t(in_channels: int = 3) -> Encoder:
    """Return Video Swin-T (Liu 2022, "Video Swin Transformer"): attention within windows of a clip.

    Clips `[batch, in_channels, frames, height, width]` give the map
    `[batch, 768, frames / 2, height / 32, width / 32]`, rounded up. In training a block is
    left out for an example at times, with a probability of up to 0.1.

    Args:
        in_channels: Channels of a clip; if not 3, the first convolution is made anew for them.

    Returns:
        An encoder of 768 features.

    Raises:
        ValueError: If `in_channels` is below 1.
    """
    at_least(1, in_channels=in_channels)
    network = video.swin3d_t(weights=None)
    if in_channels != RGB:
        network.patch_embed.proj = with_in_channels(network.patch_embed.proj, in_channels)
    parts = [(name, getattr(network, name)) for name in ("patch_embed", "pos_drop", "features", "norm")]
    body = nn.Sequential(OrderedDict([*parts, ("channels_first", Permute(_CHANNELS_FIRST))]))
    return Encoder(body, 768)


class _MultiscaleBody(MViT):  # type: ignore[misc]  # torchvision has no types
    """torchvision's network up to its tokens, as a map, of clips of any size."""

    def forward(self, clips: Tensor) -> Tensor:
        patches = self.conv_proj(clips)
        grid = tuple(patches.shape[2:])
        tokens = self.pos_encoding(patches.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens, grid = block(tokens, grid)
        unfolded: Tensor = self.norm(tokens)[:, 1:].mT.unflatten(2, grid)
        return unfolded


def mvit_v2_s(in_channels: int = 3, clip_frames: int = 16, image_size: int = 224) -> Encoder:
    """Return MViTv2-S (Li 2022, "MViTv2: Improved Multiscale Vision Transformers").

    Clips `[batch, in_channels, frames, size, size]` give the map `[batch, 768, frames / 2, size / 32, size / 32]`.
    Relative positions are made for one size of clip and interpolated for others, which on GPUs has no deterministic
    gradient: train at the size given here. The class token takes part in attention alone. In training a block is left
    out for an example at times, with a probability of up to 0.2.

    Args:
        in_channels: Channels of a clip.
        clip_frames: Frames of a clip in training, a multiple of 2.
        image_size: Height and width in training, a multiple of 32.

    Returns:
        An encoder of 768 features.

    Raises:
        ValueError: If an argument is out of range.
    """
    at_least(1, in_channels=in_channels)
    for name, size, part in (("clip_frames", clip_frames, 2), ("image_size", image_size, 32)):
        if size < 1 or size % part:
            raise ValueError(f"{name} must be a multiple of {part}, got {size}")
    body = _MultiscaleBody(
        spatial_size=(image_size, image_size),
        temporal_size=clip_frames,
        block_setting=_blocks(),
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        stochastic_depth_prob=_STOCHASTIC_DEPTH,
    )
    body.head = nn.Identity()
    deterministic(body)
    if in_channels != RGB:
        body.conv_proj = with_in_channels(cast(nn.Conv3d, body.conv_proj), in_channels)
    return Encoder(body, 768)


def _blocks() -> list[MSBlockConfig]:
    """Return torchvision's settings: the first block of a stage halves height and width and doubles the channels."""
    blocks = []
    for stage, depth in enumerate(_DEPTHS):
        before = _WIDTHS[max(0, stage - 1)]
        widths = [before, *[_WIDTHS[stage]] * depth]
        for place, (width_in, width_out) in enumerate(pairwise(widths)):
            side = 2 if stage and not place else 1
            strides = ([1, side, side], [1, _STRIDES[stage], _STRIDES[stage]])
            blocks.append(MSBlockConfig(_HEADS[stage], width_in, width_out, _KERNEL, _KERNEL, *strides))
    return blocks
