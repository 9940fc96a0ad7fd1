"""MoCo v2: find the teacher's embedding of the other view among a queue of earlier ones (He 2020; Chen 2020).

"Momentum Contrast for Unsupervised Visual Representation Learning" and "Improved Baselines with Momentum Contrastive
Learning", with a queue for each view and both directions of the loss (Chen, Xie & He 2021).
"""

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, within
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.objectives.queue import Queue, capacity, unit
from fedssl.objectives.teacher import Following, make_teacher
from fedssl.privacy.contract import PrivacyContract


def moco_loss(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return the mean cross entropy, in nats, of finding each query's key among the negatives.

    No gradient reaches keys or negatives; without negatives the loss is 0.

    Args:
        queries: `[batch, dim]`, of any length.
        keys: `[batch, dim]`, of any length.
        negatives: `[rows, dim]` of unit length.
        temperature: Cosines are divided by it.
    """
    queries, keys = unit(queries), unit(keys.detach())
    positive = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat((positive, queries @ negatives.detach().to(queries.dtype).T), dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def sliced(network: Callable[[Tensor], Tensor], images: Tensor, slices: int) -> Tensor:
    """Return `network(images)`, of which parts of at least 2 images see each other in batch normalisation.

    Args:
        network: Maps `[n, ...]` to `[n, dim]`.
        images: `[batch, ...]`.
        slices: Most parts.
    """
    parts = images.tensor_split(max(1, min(slices, len(images) // 2)))
    return torch.cat([network(part) for part in parts])


class MoCo(Objective):
    """Contrast with a queue of the teacher's embeddings of earlier batches.

    All images of one batch share its mean and variance in batch normalisation, so a query could know its key by them:
    the queue is of other batches. As on the eight devices of the paper a batch is therefore normalised in slices, and
    the teacher's are of images in another order; an order alone would change nothing.

    Args:
        temperature: Temperature of the cosines.
        queue_size: Rows of a view's queue; it has at most eight for each example of the largest client. Of more
            rows than a client has examples some are earlier embeddings of the same image, which are negatives too.
        hidden: Width of the projector's hidden layer.
        dim: Width of an embedding.
        norm: What normalises the projector's hidden layer.
        slices: Parts of a batch that are normalised apart; 1 for networks without batch normalisation.
        momentum_start: Momentum of the teacher at the beginning of the run.
        momentum_end: Momentum at its end.
        teacher: What a new round does to the teacher, see `Following`; "reset" empties the queues too, which are of
            the teacher that was.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("queue", frozenset({"teacher", "queue"}))
    views: tuple[Role, ...] = ("full", "full")

    def __init__(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
        self,
        temperature: float = 0.2,
        queue_size: int = 32768,
        hidden: int = 2048,
        dim: int = 256,
        norm: HeadNorm = "none",
        slices: int = 8,
        momentum_start: float = 0.99,
        momentum_end: float = 0.999,
        teacher: Literal["reset", "keep", "ema_global"] = "keep",
    ) -> None:
        above(0, temperature=temperature)
        at_least(1, queue_size=queue_size, hidden=hidden, dim=dim, slices=slices)
        within(0, 1, momentum_start=momentum_start, momentum_end=momentum_end)
        self.temperature = temperature
        self.queue_size = queue_size
        self.hidden = hidden
        self.dim = dim
        self.norm = norm
        self.slices = slices
        self.following = Following(momentum_start, momentum_end, teacher)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector, the teacher and a queue for each view."""
        projector = mlp([encoder.feature_dim, self.hidden, self.dim], self.norm)
        size = capacity(self.queue_size, population.num_examples)
        return {
            "projector": projector,
            "teacher": make_teacher(backbone=encoder, projector=projector),
            "queue": nn.ModuleList(Queue(size, self.dim) for _ in self.views),
        }

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of two views, whose keys are the newest of the queues afterwards."""
        images = torch.cat(batch.views)
        first, second = sliced(_embedding(model), images, self.slices).chunk(2)
        first_key, second_key = self._keys(model, images).chunk(2)
        first_queue, second_queue = (cast(Queue, queue) for queue in cast(nn.ModuleList, model["queue"]))
        loss = 0.5 * (
            moco_loss(first, second_key, second_queue.rows(), self.temperature)
            + moco_loss(second, first_key, first_queue.rows(), self.temperature)
        )
        first_queue.write(first_key)
        second_queue.write(second_key)
        return Step(loss=loss, metrics=collapse(first))

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Prepare the teacher for the model that came, and the queues for the teacher."""
        self.following.begin_round(model, first=first)
        if self.following.on_round == "reset":
            for queue in cast(nn.ModuleList, model["queue"]):
                cast(Queue, queue).clear()

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Move the teacher towards the trained network."""
        self.following.after_step(model, progress)

    @torch.no_grad()
    def _keys(self, model: nn.ModuleDict, images: Tensor) -> Tensor:
        """Return the teacher's unit embeddings of images, which it sees in a random order."""
        order = torch.randperm(len(images)).to(images.device)
        shuffled = sliced(_embedding(cast(nn.ModuleDict, model["teacher"])), images[order], self.slices)
        return unit(shuffled[order.argsort()])


def _embedding(model: nn.ModuleDict) -> Callable[[Tensor], Tensor]:
    return lambda images: cast(Tensor, model["projector"](model["backbone"](images)))
