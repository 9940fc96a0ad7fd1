"""Alignment and uniformity as a loss: views of an image meet, images spread over the sphere (Wang & Isola 2020).

"Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract


def align_uniform(first: Tensor, second: Tensor, weight: float, t: float) -> Tensor:
    """Return the mean squared distance of views, plus `weight` times the log of the mean Gaussian potential of pairs.

    Args:
        first: `[batch, dim]` embeddings of one view, of any length, of at least two examples.
        second: `[batch, dim]` embeddings of the other view.
        weight: Of uniformity, whose value is the mean over the two views.
        t: Sharpness of the potential exp(-t distance²).
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    one, two = F.normalize(first.to(dtype), dim=1), F.normalize(second.to(dtype), dim=1)
    aligned = (one - two).square().sum(dim=1).mean()
    uniform = (_log_potential(one, t) + _log_potential(two, t)) / 2
    return aligned + weight * uniform


def _log_potential(rows: Tensor, t: float) -> Tensor:
    first, second = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    squares = 2 - 2 * (rows @ rows.T)[first, second]  # of unit vectors
    return torch.logsumexp(-t * squares, dim=0) - torch.log(squares.new_tensor(float(len(first))))


class AlignUniform(Objective):
    """Alignment of the two views of an image, and uniformity over the images of a batch.

    Args:
        weight: Of uniformity.
        t: Sharpness of the potential.
        hidden: Width of the projector's hidden layer.
        dim: Width of an embedding.
        norm: What normalises the projector's hidden layer.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("batch")
    views: tuple[Role, ...] = ("full", "full")
    min_batch = 2  # uniformity is of pairs of examples

    def __init__(
        self, weight: float = 1.0, t: float = 2.0, hidden: int = 2048, dim: int = 128, norm: HeadNorm = "none"
    ) -> None:
        above(0, weight=weight, t=t)
        at_least(1, hidden=hidden, dim=dim)
        self.weight = weight
        self.t = t
        self.hidden = hidden
        self.dim = dim
        self.norm = norm

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector."""
        return {"projector": mlp([encoder.feature_dim, self.hidden, self.dim], self.norm)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of two views."""
        embeddings: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        first, second = embeddings.chunk(2)
        return Step(loss=align_uniform(first, second, self.weight, self.t), metrics=collapse(first))
