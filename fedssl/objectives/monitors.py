"""Signs of collapse, logged by every objective that joins embeddings."""

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 64  # of a batch that are looked at: the rank takes a decomposition in every step


@torch.no_grad()
def collapse(embeddings: Tensor) -> dict[str, float | Tensor]:
    """Return how far embeddings are from all being the same, of at most 64 of a batch.

    Args:
        embeddings: `[batch, dim]`, of any length; they are normalised here.

    Returns:
        "embedding-std", the mean standard deviation of a dimension times the root of dim: near 1 when directions are
        spread out, 0 when all are the same; "embedding-rank", the exponential of the entropy of the singular values
        (Roy & Vetterli 2007), from 1 to min(64, batch, dim); "embedding-cosine", the mean cosine of two examples.
    """
    # the decomposition of an embedding that is not finite raises; the loss says so itself
    rows = F.normalize(embeddings[:_ROWS].detach().float().nan_to_num(0.0, 0.0, 0.0), dim=1)
    number, dim = rows.shape
    values = torch.linalg.svdvals(rows)
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    entropy = -torch.xlogy(shares, shares).sum()
    off_diagonal = (rows.sum(dim=0).square().sum() - rows.square().sum()) / max(1, number * (number - 1))
    spread = rows.std(dim=0, unbiased=False).mean() * dim**0.5
    return {
        "embedding-std": spread,
        "embedding-rank": entropy.exp(),
        "embedding-cosine": off_diagonal,
    }
