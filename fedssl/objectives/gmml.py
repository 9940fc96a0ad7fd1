"""GMML: repair images of which groups of connected patches are corrupted (Atito 2022, "GMML is All you Need")."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least, within
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract

_BLOCKS = 96  # so many random blocks cover three quarters of an image, whatever the size of its patches
_NUMBERS = 4  # of a block: row, column, height, width
_NOISE_MEAN, _NOISE_STD = 0.5, 0.25  # a standard normal once the encoder has normalised the pixels
_LEAST_UNIFORM = 2.0**-54


class Gmml(Objective):
    """Mean absolute error of the pixels that were corrupted, predicted from the feature map of the corrupted image.

    Blocks of patches are filled with Gaussian noise until a share of the image is covered that each example draws. What
    is corrupted, and the noise, are a function of the example's own numbers. All frames of a clip are corrupted alike.

    Args:
        image_size: Height and width of a view in pixels.
        patch_size: Corners of blocks lie on a grid of this many pixels.
        channels: Channels of a view.
        least: Least share of an image that is covered with noise.
        most: Greatest share; the last block may pass it.
        largest_block: Greatest side of a block as a share of the image's.
        replaced: Above 0, half of the examples get, instead of noise, blocks of the next example of the batch until
            this share is covered. This couples examples.
        hidden: Width of the two pointwise layers of the head.

    Raises:
        ValueError: If an argument is out of range.
    """

    views: tuple[Role, ...] = ("light",)

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        least: float = 0.5,
        most: float = 0.75,
        largest_block: float = 0.3,
        replaced: float = 0.0,
        hidden: int = 512,
    ) -> None:
        at_least(1, patch_size=patch_size, channels=channels, hidden=hidden)
        if image_size < 2 * patch_size or image_size % patch_size:
            raise ValueError(f"image_size must be two or more times patch_size {patch_size}, got {image_size}")
        within(0, 1, most=most, largest_block=largest_block, replaced=replaced)
        if not 0 < least <= most:
            raise ValueError(f"least must be above 0 and at most {most}, got {least}")
        self.image_size = image_size
        self.patch_size = patch_size
        self.channels = channels
        self.shares = (least, most)
        self.largest_block = largest_block
        self.replaced = replaced
        self.hidden = hidden
        self.contract = PrivacyContract("batch" if replaced > 0 else "per_example")
        self.min_batch = 2 if replaced > 0 else 1
        self.num_uniforms = 2 + _NUMBERS * _BLOCKS + channels * image_size**2

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the head that predicts pixels."""
        return {"head": PixelDecoder(encoder, self.channels, self.image_size, self.hidden)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the error of one view and "corrupted", the share of its pixels that were."""
        clips = batch.views[0]
        check_size(clips, self.image_size)
        corrupted, pixels = self.corrupt(clips, batch.uniforms)
        return Step(corrupted_error(decoded(model, corrupted), clips, pixels), {"corrupted": pixels.float().mean()})

    def corrupt(self, clips: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Return the corrupted clips, and which pixels of each were corrupted `[batch, height, width]` bool.

        Args:
            clips: `[batch, channels, frames, image_size, image_size]`.
            uniforms: `[batch, num_uniforms]` in [0, 1).
        """
        split = [1, 1, _NUMBERS * _BLOCKS, self.channels * self.image_size**2]
        kind, amount, blocks, noise = uniforms.split(split, dim=1)
        swapped = kind[:, 0] < (0.5 if self.replaced > 0 else 0.0)
        least, most = self.shares
        wanted = torch.where(swapped, self.replaced, least + (most - least) * amount[:, 0])
        cells = covered(
            blocks.unflatten(1, (_BLOCKS, _NUMBERS)), wanted, self.image_size // self.patch_size, self.largest_block
        )
        pixels = enlarged(cells, self.patch_size)
        normal = torch.special.ndtri(noise.clamp_min(_LEAST_UNIFORM)).to(clips.dtype)
        filling = (_NOISE_MEAN + _NOISE_STD * normal).view(-1, self.channels, 1, self.image_size, self.image_size)
        source = torch.where(swapped[:, None, None, None, None], clips.roll(-1, dims=0), filling)
        return torch.where(pixels[:, None, None], source, clips), pixels


class PixelDecoder(nn.Module):
    """Two pointwise layers and a transposed convolution, from a feature map to pixels.

    Args:
        encoder: Its feature map is tried once to find how many pixels a cell of it stands for.
        channels: Channels of a view.
        image_size: Height and width of a view in pixels.
        hidden: Width of the pointwise layers.
    """

    def __init__(self, encoder: Encoder, channels: int, image_size: int, hidden: int) -> None:
        super().__init__()
        self.image_size = image_size
        feature_dim, _, _, side = encoder.map_shape((channels, 1, image_size, image_size))
        stride = math.ceil(image_size / side)
        self.layers = nn.Sequential(
            nn.Conv2d(feature_dim, hidden, 1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.GELU(),
            nn.ConvTranspose2d(hidden, channels, stride, stride),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return the pixels `[batch, channels, frames, height, width]` of maps `[batch, feature_dim, frames, h, w]`."""
        frames: Tensor = self.layers(maps.transpose(1, 2).flatten(0, 1))
        inside = frames[..., : self.image_size, : self.image_size]
        pixels: Tensor = inside.unflatten(0, (len(maps), -1))
        return pixels.transpose(1, 2)


def decoded(model: nn.ModuleDict, clips: Tensor) -> Tensor:
    """Return what the head, a `PixelDecoder`, makes of the encoder's maps of `clips`: as many pixels.

    Raises:
        ValueError: The encoder's maps have fewer frames.
    """
    maps = cast(Encoder, model["backbone"]).feature_map(clips)
    if maps.shape[2] != clips.shape[2]:
        raise ValueError(
            f"model must keep the frames of a clip to predict pixels, got {maps.shape[2]} of {clips.shape[2]}"
        )
    return cast(Tensor, model["head"](maps))


def corrupted_error(predicted: Tensor, clips: Tensor, corrupted: Tensor) -> Tensor:
    """Return the mean over examples of the mean absolute error over what was corrupted.

    Args:
        predicted: `[batch, channels, frames, height, width]`.
        clips: `[batch, channels, frames, height, width]`.
        corrupted: `[batch, height, width]` bool, at least one of each example.
    """
    precise = torch.promote_types(predicted.dtype, torch.float32)
    errors = (predicted.to(precise) - clips).abs().mean(dim=(1, 2)) * corrupted
    return (errors.sum(dim=(1, 2)) / corrupted.sum(dim=(1, 2))).mean()


def covered(uniforms: Tensor, wanted: Tensor, side: int, largest: float) -> Tensor:
    """Return the cells of a square grid that blocks cover, one block after the other until they are enough.

    Args:
        uniforms: `[batch, blocks, 4]` in [0, 1): row, column, height and width of each block.
        wanted: `[batch]` share of the grid; the block that reaches it is the last.
        side: Rows and columns of the grid.
        largest: Greatest side of a block as a share of the grid's; it is one cell at least.

    Returns:
        `[batch, side, side]` bool.
    """
    most = max(1, int(largest * side))
    rows = _spans(uniforms[..., 0], uniforms[..., 2], side, most)
    columns = _spans(uniforms[..., 1], uniforms[..., 3], side, most)
    blocks = rows.unsqueeze(3) & columns.unsqueeze(2)
    so_far = (blocks.int().cumsum(dim=1) > 0).double().mean(dim=(2, 3))
    before = F.pad(so_far, (1, -1))  # what the blocks before each one cover
    needed = before < wanted[:, None]
    return (blocks & needed[..., None, None]).any(dim=1)


def enlarged(cells: Tensor, patch_size: int) -> Tensor:
    """Return cells `[batch, rows, columns]` as pixels `[batch, rows * patch_size, columns * patch_size]`."""
    return cells.repeat_interleave(patch_size, dim=1).repeat_interleave(patch_size, dim=2)


def check_size(clips: Tensor, image_size: int) -> None:
    """Raise ValueError unless the views have the size that the numbers of an objective were counted for."""
    height, width = clips.shape[-2:]
    if (height, width) != (image_size, image_size):
        raise ValueError(f"image_size must be the size of the views, {height}x{width}, got {image_size}")


def _spans(places: Tensor, sizes: Tensor, side: int, most: int) -> Tensor:
    """Return which of `side` cells each block spans `[batch, blocks, side]` in one direction; it lies inside."""
    size = 1 + (sizes * most).long()
    start = (places * (side - size + 1)).long()
    cells = torch.arange(side, device=places.device)
    return (cells >= start[..., None]) & (cells < (start + size)[..., None])
