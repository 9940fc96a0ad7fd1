"""NNCLR: predict the nearest earlier embedding of the other view among those of the batch (Dwibedi 2021).

"With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations".
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, one_of
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.objectives.queue import Queue, capacity, unit
from fedssl.privacy.contract import PrivacyContract


def nnclr_loss(neighbours: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """Return the mean cross entropy, in nats, of telling whose prediction belongs to a neighbour.

    The neighbour of one view is compared by cosine with the predictions from the other view of all the batch, in both
    directions.

    Args:
        neighbours: `[2 * batch, dim]` of the first view, then of the second, of any length.
        predictions: `[2 * batch, dim]` from the first view, then from the second, of any length.
        temperature: Cosines are divided by it.
    """
    first_neighbours, second_neighbours = unit(neighbours).chunk(2)
    first, second = (unit(predictions) / temperature).chunk(2)
    own = torch.arange(len(first), device=first.device)
    one_way = F.cross_entropy(first_neighbours @ second.T, own)
    return 0.5 * (one_way + F.cross_entropy(second_neighbours @ first.T, own))


def nearest(embeddings: Tensor, rows: Tensor) -> Tensor:
    """Return the row `[batch, dim]` of highest cosine to each embedding, as it is; the first of equally near ones.

    Args:
        embeddings: `[batch, dim]`, of any length.
        rows: `[n, dim]` of unit length, at least one.
    """
    return rows[(embeddings.to(rows.dtype) @ rows.T).argmax(dim=1)]


class Nnclr(Objective):
    """Contrast of predictions with the nearest neighbours of the other view.

    Neighbours are rows of a queue of the first view's embeddings; before the first batch is written there, an
    embedding is its own neighbour.

    Args:
        temperature: Temperature of the cosines.
        queue_size: Rows of the queue; it has at most eight for each example of the largest client.
        hidden: Width of the projector's two hidden layers.
        dim: Width of an embedding.
        predictor_hidden: Width of the predictor's hidden layer.
        norm: What normalises the projector and the predictor's hidden layer.
        queue: "keep" goes on with the queue in a client's next round, "reset" empties it: its rows are of the model
            that was.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("batch", frozenset({"queue"}))
    views: tuple[Role, ...] = ("full", "full")
    min_batch = 2  # a prediction alone has nothing to be told from

    def __init__(
        self,
        temperature: float = 0.2,
        queue_size: int = 65536,
        hidden: int = 2048,
        dim: int = 256,
        predictor_hidden: int = 4096,
        norm: HeadNorm = "batch",
        queue: Literal["keep", "reset"] = "keep",
    ) -> None:
        above(0, temperature=temperature)
        at_least(1, queue_size=queue_size, hidden=hidden, dim=dim, predictor_hidden=predictor_hidden)
        one_of(("keep", "reset"), queue=queue)
        self.temperature = temperature
        self.queue_size = queue_size
        self.hidden = hidden
        self.dim = dim
        self.predictor_hidden = predictor_hidden
        self.norm = norm
        self.queue = queue

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector, the predictor and the queue."""
        widths = [encoder.feature_dim, self.hidden, self.hidden, self.dim]
        return {
            "projector": mlp(widths, self.norm, last_norm=True),
            "predictor": mlp([self.dim, self.predictor_hidden, self.dim], self.norm),
            "queue": Queue(capacity(self.queue_size, population.num_examples), self.dim),
        }

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of two views; the first one's embeddings are the newest of the queue afterwards."""
        embeddings: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        predictions: Tensor = model["predictor"](embeddings)
        queue, units = cast(Queue, model["queue"]), unit(embeddings.detach())
        neighbours = nearest(units, queue.rows() if len(queue) else units)
        loss = nnclr_loss(neighbours, predictions, self.temperature)
        first = units[: len(units) // 2]
        queue.write(first)
        return Step(loss=loss, metrics=collapse(first))

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Empty the queue where it is not kept."""
        if self.queue == "reset":
            cast(Queue, model["queue"]).clear()
