"""MV-MR: embeddings that depend on another view and on handcrafted features (Kinakh 2024).

"MV-MR: Multi-Views and Multi-Representations for Self-Supervised Learning and Knowledge Distillation".
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract

_BINS, _CELL = 24, 8  # orientations, and pixels of a cell's side


class Terms(NamedTuple):
    """The three terms of MV-MR, whose sum is the loss."""

    difference: Tensor
    variance: Tensor
    independence: Tensor


class MvMr(Objective):
    """Equal embeddings of an augmented and the clean view, spread out, and dependent on what the images look like.

    The dependence on pixels of both views, on oriented gradients and on local contrast of the clean view is maximised.
    The scattering features of the paper are left out.

    Args:
        hidden: Width of the projector's two hidden layers.
        dim: Width of an embedding.
        norm: What normalises the projector's hidden layers.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("batch")
    views: tuple[Role, ...] = ("full", "clean")
    min_batch = 2

    def __init__(self, hidden: int = 8192, dim: int = 8192, norm: HeadNorm = "batch") -> None:
        at_least(1, hidden=hidden, dim=dim)
        self.hidden = hidden
        self.dim = dim
        self.norm: HeadNorm = norm

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector."""
        return {"projector": mlp([encoder.feature_dim, self.hidden, self.hidden, self.dim], self.norm)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of both views, its terms and the signs of collapse."""
        embeddings: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        augmented, clean = embeddings.chunk(2)
        with torch.no_grad():
            features = representations(*batch.views)
        terms = mv_mr(augmented, clean, features)
        logs = {name: term.item() for name, term in terms._asdict().items()}
        return Step(loss=torch.stack(terms).sum(), metrics=logs | collapse(augmented))


def mv_mr(augmented: Tensor, clean: Tensor, features: Sequence[Tensor]) -> Terms:
    """Return the terms of the embeddings of two views.

    Args:
        augmented: `[batch, dim]` embeddings of the augmented view, at least 2.
        clean: `[batch, dim]` embeddings of the clean view of the same examples.
        features: `[batch, width]` each, what the augmented embeddings shall depend on.

    Returns:
        The mean squared difference; the sum over both views of the mean that the standard deviations of dimensions lack
        to 1; and the sum of what the distance correlations of the augmented embeddings lack to 1, those with the clean
        ones and with each of the features.
    """
    augmented, clean = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (augmented, clean))
    lacks = [F.relu(1 - _root(rows.var(dim=0))).mean() for rows in (augmented, clean)]
    correlations = [distance_correlation(other, augmented) for other in (clean, *features)]
    return Terms(
        difference=F.mse_loss(clean, augmented),
        variance=torch.stack(lacks).sum(),
        independence=(1 - torch.stack(correlations)).sum(),
    )


def distance_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return the distance correlation of paired rows, in [0, 1] (Székely 2007); 0 when one side is constant.

    Args:
        first: `[batch, width]`.
        second: `[batch, other_width]`.
    """
    one, other = _centred_distances(first), _centred_distances(second)
    # the product of roots, not the root of the product: the squares of small distances would vanish
    scale = _root(one.square().mean()) * _root(other.square().mean())
    varies = scale > 0
    return _root(torch.where(varies, (one * other).mean() / torch.where(varies, scale, 1), 0))


def representations(augmented: Tensor, clean: Tensor) -> list[Tensor]:
    """Return the pixels of the clean and of the augmented view, oriented gradients and local deviations of the clean.

    Args:
        augmented: `[batch, channels, frames, height, width]` in [0, 1].
        clean: The same of the clean view.

    Returns:
        `[batch, width]` float32 or better each.
    """
    pixels = clean.to(torch.promote_types(clean.dtype, torch.float32))
    return [clean.flatten(1), augmented.flatten(1), oriented_gradients(pixels), local_deviations(pixels)]


def oriented_gradients(clips: Tensor) -> Tensor:
    """Return histograms of oriented gradients: 24 orientations modulo 180 degrees in cells of about 8x8 pixels.

    A gradient's magnitude is shared between the two nearest orientations; each channel of each frame stands alone.

    Args:
        clips: `[batch, channels, frames, height, width]`.

    Returns:
        `[batch, channels * frames * 24 * cells]`.
    """
    images = clips.flatten(0, 2)[:, None]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    magnitude = torch.hypot(across, down)
    orientation = torch.atan2(down, across) / math.pi * _BINS
    cells = (max(1, clips.shape[3] // _CELL), max(1, clips.shape[4] // _CELL))
    histograms = []
    for number in range(_BINS):  # one after the other: all at once would take 24 times the memory of the images
        distance = (orientation - number).remainder(_BINS)
        share = F.relu(1 - torch.minimum(distance, _BINS - distance))
        histograms.append(F.adaptive_avg_pool2d(magnitude * share, cells))
    return torch.cat(histograms, dim=1).view(len(clips), -1)


def local_deviations(clips: Tensor) -> Tensor:
    """Return the standard deviation of the 3x3 pixels around each, of fewer at the border.

    Args:
        clips: `[batch, channels, frames, height, width]`.

    Returns:
        `[batch, channels * frames * height * width]`.
    """
    images = clips.flatten(0, 2)[:, None]
    mean, squares = (F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) for x in (images, images.square()))
    return (squares - mean.square()).clamp_min(0).sqrt().view(len(clips), -1)


def _centred_distances(rows: Tensor) -> Tensor:
    """Return the Euclidean distances `[batch, batch]` between rows, with rows and columns of mean 0."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    # from differences: products of rows would leave equal ones a distance, and its gradient without bound
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances - distances.mean(dim=0) - distances.mean(dim=1, keepdim=True) + distances.mean()


def _root(values: Tensor) -> Tensor:
    """Return the square root of what is above 0, and 0 with a gradient of 0 elsewhere."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1).sqrt(), 0)
