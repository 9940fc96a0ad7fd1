"""W-MSE: whitened embeddings of views of one example are near (Ermolov 2021).

"Whitening for Self-Supervised Representation Learning".
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract

_FALLBACK = 1e-4  # shrinkage of a covariance that cannot be factorised without


class WMse(Objective):
    """Distances of views after whitening, which spreads embeddings out without negatives.

    A batch is divided at random into slices of at least `slice_size` examples, which are whitened apart. The metric
    "whitening-fallback" counts those of a step, of any view, whose covariance was singular and was shrunk by 1e-4.

    Args:
        num_views: Views of an example; every pair of them is compared.
        hidden: Width of the projector's hidden layer.
        dim: Width of an embedding.
        slice_size: Fewest examples that are whitened together, twice `dim` or more for a stable estimate.
        epsilon: Every covariance is shrunk by so much towards the identity.
        float64: Whether to whiten in double precision.
        norm: What normalises the projector's hidden layer.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("batch")

    def __init__(
        self,
        num_views: int = 2,
        hidden: int = 1024,
        dim: int = 64,
        slice_size: int = 128,
        epsilon: float = 0.0,
        float64: bool = False,
        norm: HeadNorm = "batch",
    ) -> None:
        at_least(2, num_views=num_views)
        at_least(1, hidden=hidden, dim=dim)
        if slice_size <= dim:
            raise ValueError(f"slice_size must be above dim, which is {dim}, got {slice_size}")
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must be in [0, 1), got {epsilon}")
        self.hidden = hidden
        self.dim = dim
        self.slice_size = slice_size
        self.epsilon = epsilon
        self.float64 = float64
        self.norm = norm
        role: Role = "full"
        self.views = (role,) * num_views
        self.min_batch = slice_size

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector."""
        return {"projector": mlp([encoder.feature_dim, self.hidden, self.dim], self.norm)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of all pairs of views."""
        embeddings: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        views = embeddings.unflatten(0, (len(batch.views), -1))
        order = torch.randperm(views.shape[1]).to(views.device)
        slices = order.tensor_split(len(order) // self.slice_size)
        loss, fallbacks = w_mse(views.double() if self.float64 else views, slices, self.epsilon)
        return Step(loss=loss, metrics={"whitening-fallback": float(fallbacks)} | collapse(views[0]))


def w_mse(views: Tensor, slices: Sequence[Tensor], epsilon: float) -> tuple[Tensor, int]:
    """Return `2 - 2 cos` of whitened embeddings, the mean over pairs of views, and how many covariances fell back.

    Args:
        views: `[views, batch, dim]` embeddings.
        slices: Places in the batch that are whitened together, more than `dim` each; disjoint.
        epsilon: Shrinkage of the covariances.
    """
    whitened, fallbacks = zip(*(whiten(views[:, places], epsilon) for places in slices), strict=True)
    directions = F.normalize(torch.cat(whitened, dim=1), dim=2)
    pairs = combinations(directions, 2)
    cosines = torch.stack([(first * second).sum(dim=1).mean() for first, second in pairs])
    return 2 - 2 * cosines.mean(), sum(fallbacks)


def whiten(rows: Tensor, epsilon: float) -> tuple[Tensor, int]:
    """Return rows of mean 0 and covariance 1, by the inverse of the Cholesky factor of their covariance.

    Args:
        rows: `[views, number, dim]`; each view is whitened apart.
        epsilon: A covariance `C` becomes `(1 - epsilon) C + epsilon`; one that is singular then is shrunk by 1e-4.

    Returns:
        `[views, number, dim]` in float32 or better, and the number of views whose covariance was singular.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    centred = rows - rows.mean(dim=1, keepdim=True)
    covariance = centred.mT @ centred / (rows.shape[1] - 1)
    factor, failed = torch.linalg.cholesky_ex(_shrunk(covariance, epsilon))
    fallbacks = int(failed.count_nonzero())
    if fallbacks:
        amount = torch.where(failed > 0, max(epsilon, _FALLBACK), epsilon)[:, None, None]
        factor = torch.linalg.cholesky(_shrunk(covariance, amount))
    return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT, fallbacks


def _shrunk(covariance: Tensor, epsilon: float | Tensor) -> Tensor:
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return (1 - epsilon) * covariance + epsilon * identity
