"""The loss of SimCLR (Chen 2020, "A Simple Framework for Contrastive Learning of Visual Representations").

With a graph of positives it is that of supervised contrast (Khosla 2020, "Supervised Contrastive Learning"; Cabannes
2023, "Active Self-Supervised Learning").
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.objectives.objective import Batch, Objective, Role
from fedssl.privacy.contract import PrivacyContract


class TwoViews(Objective):
    """An objective whose loss is `nt_xent` of what its projector makes of two views of each example.

    Attributes:
        temperature: Of the loss.
    """

    contract = PrivacyContract("batch")
    views: tuple[Role, ...] = ("full", "full")
    min_batch = 2  # an example alone has nothing to be told from
    temperature: float

    def embeddings(self, model: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what is compared, `[batch, dim]` of each view."""
        made: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        first, second = made.chunk(2)
        return first, second


def nt_xent(first: Tensor, second: Tensor, temperature: float, graph: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy, in nats, of finding each embedding's partner among all the others.

    An embedding is compared with the other `2 * batch - 1` of both views, its partner included, by cosine.

    Args:
        first: `[batch, dim]` embeddings of one view, of any length.
        second: `[batch, dim]` embeddings of the other view of the same examples.
        temperature: Cosines are divided by it.
        graph: `[batch, batch]` symmetric, at least 0: how much examples are positives of each other, the diagonal an
            example and its other view. Cross entropies are averaged with these weights. A row of zeros is an example
            of which nothing is known: its positive is its other view. None is the identity.

    Raises:
        ValueError: If `graph` has another shape, is not symmetric or has a value below 0.
    """
    embeddings = torch.cat((first, second))
    embeddings = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
    similarities = embeddings @ embeddings.T / temperature
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    if graph is not None:
        # not -inf: its product with a weight of 0 is no number
        others = similarities.masked_fill(itself, torch.finfo(similarities.dtype).min)
        return F.cross_entropy(others, _weights(graph.to(similarities.dtype), len(first), itself))
    partners = torch.arange(len(embeddings), device=embeddings.device).roll(len(first))
    return F.cross_entropy(similarities.masked_fill(itself, float("-inf")), partners)


def _weights(graph: Tensor, batch: int, itself: Tensor) -> Tensor:
    """Return each row's shares `[2 * batch, 2 * batch]` of its positives, which sum to 1."""
    if graph.shape != (batch, batch) or bool((graph < 0).any()) or not torch.equal(graph, graph.T):
        raise ValueError(f"graph must be a symmetric [{batch}, {batch}] of at least 0, got {graph}")
    unknown = (graph.sum(dim=1) == 0).to(graph.dtype)
    weights = (graph + unknown.diag()).repeat(2, 2).masked_fill(itself, 0)
    return weights / weights.sum(dim=1, keepdim=True)
