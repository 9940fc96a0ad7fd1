"""SwAV: every view predicts to which prototypes the others are assigned (Caron 2020).

"Unsupervised Learning of Visual Features by Contrasting Cluster Assignments".
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, one_of, within
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.multi_crop import FULL, Progress, crop_features, cross_view, roles
from fedssl.objectives.objective import Batch, Objective, Population, Step
from fedssl.objectives.queue import Queue, capacity, unit
from fedssl.objectives.sinkhorn import sinkhorn
from fedssl.privacy.contract import PrivacyContract


class Swav(Objective):
    """Clustering while training: assignments that use all prototypes equally are predicted across views.

    A client's first step of all takes itself for the first of the run. Assignments of different clients have the same
    meaning only where the prototypes are shared.

    Args:
        hidden: Width of the projector's hidden layer.
        dim: Width of an embedding.
        num_prototypes: Prototypes; many more than there are examples in a batch and its queue are assigned by chance.
        norm: What normalises the projector's hidden layer.
        num_local: Small crops beside the two full views.
        temperature: Cosines are divided by it to become predictions.
        epsilon: Cosines are divided by it to become assignments; the smaller, the harder.
        iterations: Of the assignment, see `sinkhorn`.
        balance: How equally an assignment uses the prototypes, from 1 down to 0; below 1 for clients of few classes.
        queue_size: Embeddings of earlier batches that are assigned along, for each full view; it has at most eight for
            each example of the largest client. 0 uses none.
        queue_start: Share of the run after which they are.
        queue: "keep" goes on with them in a client's next round, "reset" forgets them: they are of the model that was.
        freeze_prototypes: Share of the run at whose beginning the prototypes get no gradient.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("batch", frozenset({"queue", "progress"}))
    min_batch = 8  # fewer are assigned by chance

    def __init__(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
        self,
        hidden: int = 2048,
        dim: int = 128,
        num_prototypes: int = 3000,
        norm: HeadNorm = "batch",
        num_local: int = 0,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        balance: float = 1.0,
        queue_size: int = 3840,
        queue_start: float = 0.05,
        queue: Literal["keep", "reset"] = "keep",
        freeze_prototypes: float = 0.002,
    ) -> None:
        at_least(1, hidden=hidden, dim=dim, num_prototypes=num_prototypes, iterations=iterations)
        at_least(0, queue_size=queue_size)
        above(0, temperature=temperature, epsilon=epsilon)
        within(0, 1, balance=balance, queue_start=queue_start, freeze_prototypes=freeze_prototypes)
        one_of(("keep", "reset"), queue=queue)
        self.hidden = hidden
        self.dim = dim
        self.num_prototypes = num_prototypes
        self.norm = norm
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.balance = balance
        self.queue_size = queue_size
        self.queue_start = queue_start
        self.queue = queue
        self.freeze_prototypes = freeze_prototypes
        self.views = roles(num_local)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector, the prototypes, a queue for each full view, and the progress."""
        size = capacity(self.queue_size, population.num_examples)
        return {
            "projector": mlp([encoder.feature_dim, self.hidden, self.dim], self.norm),
            "prototypes": nn.Linear(self.dim, self.num_prototypes, bias=False),
            "queue": nn.ModuleList(Queue(size, self.dim) for _ in range(FULL if self.queue_size else 0)),
            "progress": Progress(),
        }

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Normalise the prototypes, which a mean over clients does not leave so; empty queues that are not kept."""
        normalize_prototypes(model)
        if self.queue == "reset":
            for queue in _queues(model):
                queue.clear()

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of all views; embeddings of the full ones are the newest of the queues afterwards."""
        progress, number = float(cast(Progress, model["progress"]).done), len(batch.places)
        embeddings = unit(model["projector"](crop_features(model["backbone"], batch.views)))
        prototypes = cast(nn.Linear, model["prototypes"]).weight
        trained = prototypes.detach() if progress < self.freeze_prototypes else prototypes
        logits = embeddings @ trained.T / self.temperature
        full = embeddings.detach().split(number)[:FULL]
        earlier = [queue.rows() for queue in _queues(model)] if progress >= self.queue_start else []
        pools = [torch.cat(rows) for rows in zip(full, earlier, strict=True)] if earlier else full
        targets = [self.assign(pool @ prototypes.T)[:number] for pool in pools]
        for view, queue in enumerate(_queues(model)):
            queue.write(full[view])
        return Step(loss=cross_view(targets, logits.split(number)), metrics=collapse(full[0]))

    def assign(self, scores: Tensor) -> Tensor:
        """Return the assignments `[n, num_prototypes]` of embeddings with these cosines, without gradient."""
        return sinkhorn(scores, self.epsilon, self.iterations, self.balance)

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Put the prototypes back on the sphere."""
        normalize_prototypes(model)
        cast(Progress, model["progress"]).done.fill_(progress)


@torch.no_grad()
def normalize_prototypes(model: nn.ModuleDict) -> None:
    """Bring the rows of "prototypes" to length 1, in place."""
    weight = cast(nn.Linear, model["prototypes"]).weight
    weight.copy_(F.normalize(weight, dim=1))


def _queues(model: nn.ModuleDict) -> list[Queue]:
    return [cast(Queue, queue) for queue in cast(nn.ModuleList, model["queue"])]
