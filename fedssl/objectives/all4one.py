"""All4One: contrast with neighbours, with their centroid, and of features (Estepa 2023).

"All4One: Symbiotic Neighbour Contrastive Learning via Self-Attention and Redundancy Reduction".
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, within
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.nnclr import nnclr_loss
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.objectives.queue import Queue, capacity, unit
from fedssl.objectives.teacher import Following, make_teacher
from fedssl.privacy.contract import PrivacyContract


def feature_loss(first: Tensor, second: Tensor, first_target: Tensor, second_target: Tensor) -> Tensor:
    """Return how far the columns of both views' embeddings are from agreeing one by one, 0 at best.

    Of the cosines of all columns with those of the other view's target, the diagonal's root mean square distance from
    1 and the others' root mean square, both over the two directions together, five times their sum.

    Args:
        first: `[batch, dim]` embeddings of the first view; dim is at least 2.
        second: `[batch, dim]` embeddings of the second view.
        first_target: `[batch, dim]` the teacher's embeddings of the first view.
        second_target: `[batch, dim]` the teacher's embeddings of the second view.
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    columns = F.normalize(torch.stack((second, first)).to(dtype), dim=1)
    targets = F.normalize(torch.stack((first_target, second_target)).detach().to(dtype), dim=1)
    cosines = targets.transpose(1, 2) @ columns
    diagonal = cosines.diagonal(dim1=1, dim2=2)
    others = cosines - diagonal.diag_embed()
    dim = first.shape[1]
    # a norm, unlike the root of a mean, has a gradient where it is 0
    agreement: Tensor = torch.linalg.vector_norm(diagonal - 1) / math.sqrt(2 * dim)
    redundancy: Tensor = torch.linalg.vector_norm(others) / math.sqrt(2 * dim * (dim - 1))
    return 5 * (agreement + redundancy)


def nearest_rows(embeddings: Tensor, rows: Tensor, number: int) -> Tensor:
    """Return the `number` rows of highest cosine to each embedding, `[batch, number, dim]`, the nearest first.

    Args:
        embeddings: `[batch, dim]`, of any length.
        rows: `[n, dim]` of unit length.
        number: Rows for each embedding; all `n` where there are fewer.
    """
    return rows[(embeddings.to(rows.dtype) @ rows.T).topk(min(number, len(rows)), dim=1).indices]


class Centroid(nn.Module):
    """Maps a sequence of embeddings to what a transformer makes of its first (Vaswani 2017), its centroid.

    Args:
        length: Longest sequence.
        dim: Width of an embedding.
        layers: Layers of the transformer, of hidden width `2 * dim`.
        heads: Attention heads of a layer.
        dropout: Probability of dropping a hidden unit.
    """

    positions: Tensor

    def __init__(self, length: int, dim: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.register_buffer("positions", sinusoids(length, dim), persistent=False)

    def forward(self, sequences: Tensor) -> Tensor:
        """Return the centroids `[batch, dim]` of sequences `[batch, length or fewer, dim]`."""
        encoded: Tensor = self.layers(sequences + self.positions[: sequences.shape[1]])
        return encoded[:, 0]


def sinusoids(length: int, dim: int) -> Tensor:
    """Return the positions `[length, dim]` of Vaswani 2017: sines in even columns, cosines in odd ones."""
    column = torch.arange(dim)
    rates = 10000.0 ** (-2 * (column // 2) / dim)
    return torch.sin(torch.arange(length)[:, None] * rates + (column % 2) * math.pi / 2)


class All4One(Objective):
    """NNCLR with a teacher, whose neighbours a transformer joins into centroids, and agreement of features.

    A view's neighbours are the rows of the queue nearest to the teacher's embedding. The centroid of their sequence is
    found by that of the other view's, shifted: the second predictor's output comes first and the last neighbour is
    left out. Before the first batch is written to the queue, its own embeddings serve as rows. The loss is half of the
    sum of its three terms, which are logged.

    Args:
        temperature: Temperature of the cosines with the nearest neighbours.
        centroid_temperature: Temperature of the cosines of centroids; the authors' code has 0.1.
        queue_size: Rows of the queue; it has at most eight for each example of the largest client.
        neighbours: Neighbours of a sequence.
        hidden: Width of the projector's two hidden layers.
        dim: Width of an embedding, a multiple of `heads`.
        predictor_hidden: Width of the hidden layer of both predictors.
        norm: What normalises the projector and the predictors' hidden layers.
        layers: Layers of the transformer.
        heads: Attention heads of a layer.
        dropout: Probability of dropping a hidden unit of the transformer.
        momentum_start: Momentum of the teacher at the beginning of the run.
        momentum_end: Momentum at its end.
        teacher: What a new round does to the teacher, see `Following`; "reset" empties the queue too, which is of the
            teacher that was.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("batch", frozenset({"teacher", "queue"}))
    views: tuple[Role, ...] = ("full", "full")
    min_batch = 2  # a prediction alone has nothing to be told from

    def __init__(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
        self,
        temperature: float = 0.2,
        centroid_temperature: float = 0.2,
        queue_size: int = 98304,
        neighbours: int = 5,
        hidden: int = 2048,
        dim: int = 256,
        predictor_hidden: int = 4096,
        norm: HeadNorm = "batch",
        layers: int = 3,
        heads: int = 8,
        dropout: float = 0.1,
        momentum_start: float = 0.99,
        momentum_end: float = 1.0,
        teacher: Literal["reset", "keep", "ema_global"] = "keep",
    ) -> None:
        at_least(1, queue_size=queue_size, neighbours=neighbours, layers=layers, heads=heads)
        at_least(1, hidden=hidden, predictor_hidden=predictor_hidden)
        at_least(2, dim=dim)
        above(0, temperature=temperature, centroid_temperature=centroid_temperature)
        within(0, 1, momentum_start=momentum_start, momentum_end=momentum_end, dropout=dropout)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads={heads}, got {dim}")
        self.temperature = temperature
        self.centroid_temperature = centroid_temperature
        self.queue_size = queue_size
        self.neighbours = neighbours
        self.hidden = hidden
        self.dim = dim
        self.predictor_hidden = predictor_hidden
        self.norm = norm
        self.transformer = (layers, heads, dropout)
        self.following = Following(momentum_start, momentum_end, teacher)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector, both predictors, the transformer, the teacher and the queue."""
        projector = mlp([encoder.feature_dim, self.hidden, self.hidden, self.dim], self.norm, last_norm=True)
        predictors = {
            name: mlp([self.dim, self.predictor_hidden, self.dim], self.norm) for name in ("neighbour", "centroid")
        }
        return {
            "projector": projector,
            "predictor": nn.ModuleDict(predictors),
            "transformer": Centroid(self.neighbours, self.dim, *self.transformer),
            "teacher": make_teacher(backbone=encoder, projector=projector),
            "queue": Queue(capacity(self.queue_size, population.num_examples), self.dim),
        }

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of two views; the teacher's embeddings of the first are the newest of the queue then."""
        images = torch.cat(batch.views)
        embeddings: Tensor = model["projector"](model["backbone"](images))
        targets = self._targets(model, images)
        queue = cast(Queue, model["queue"])
        rows = nearest_rows(targets, queue.rows() if len(queue) else targets, self.neighbours)
        predictors = cast(nn.ModuleDict, model["predictor"])
        terms = {
            "neighbour-loss": nnclr_loss(rows[:, 0], predictors["neighbour"](embeddings), self.temperature),
            "centroid-loss": self._centroid_loss(model["transformer"], rows, predictors["centroid"](embeddings)),
            "feature-loss": feature_loss(*embeddings.chunk(2), *targets.chunk(2)),
        }
        first_target, _ = targets.chunk(2)
        queue.write(first_target)
        metrics = {name: float(term.detach()) for name, term in terms.items()}
        loss = 0.5 * torch.stack(tuple(terms.values())).sum()
        return Step(loss=loss, metrics={**metrics, **collapse(embeddings[: len(first_target)])})

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Prepare the teacher for the model that came, and the queue for the teacher."""
        self.following.begin_round(model, first=first)
        if self.following.on_round == "reset":
            cast(Queue, model["queue"]).clear()

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Move the teacher towards the trained network."""
        self.following.after_step(model, progress)

    def _centroid_loss(self, transformer: nn.Module, rows: Tensor, predictions: Tensor) -> Tensor:
        """Return the contrast of the centroids of neighbours `[2 * batch, number, dim]` with the shifted ones."""
        shifted = torch.cat((predictions.unsqueeze(1), rows[:, :-1]), dim=1)
        centroids, predicted = transformer(torch.cat((rows, shifted))).chunk(2)
        return nnclr_loss(centroids, predicted, self.centroid_temperature)

    @torch.no_grad()
    def _targets(self, model: nn.ModuleDict, images: Tensor) -> Tensor:
        teacher = cast(nn.ModuleDict, model["teacher"])
        return unit(teacher["projector"](teacher["backbone"](images)))
