"""Group normalisation (Wu & He 2018) of any width: what takes the place of batch normalisation under privacy."""

from torch import nn

_GROUPS = 8
_LEAST = 4  # channels of a group: one alone would be normalised to nothing


def group_norm(channels: int, *, affine: bool = True) -> nn.GroupNorm:
    """Return a normalisation in up to 8 equal groups of at least 4 channels, or in one."""
    fitting = [number for number in range(1, _GROUPS + 1) if channels % number == 0 and channels >= _LEAST * number]
    groups = max(fitting, default=1)
    return nn.GroupNorm(groups, channels, affine=affine)
