"""The loss of SimCLR (Chen 2020, "A Simple Framework for Contrastive Learning of Visual Representations")."""

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return the mean cross entropy, in nats, of finding each embedding's partner among all the others.

    An embedding is compared with the other `2 * batch - 1` of both views, its partner included, by cosine.

    Args:
        first: `[batch, dim]` embeddings of one view, of any length.
        second: `[batch, dim]` embeddings of the other view of the same examples.
        temperature: Cosines are divided by it.
    """
    embeddings = torch.cat((first, second))
    embeddings = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
    similarities = embeddings @ embeddings.T / temperature
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    partners = torch.arange(len(embeddings), device=embeddings.device).roll(len(first))
    return F.cross_entropy(similarities.masked_fill(itself, float("-inf")), partners)
