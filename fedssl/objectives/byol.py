"""BYOL: each view predicts what a teacher makes of the other, without negatives (Grill 2020).

"Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning".
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from fedssl.checks import at_least, within
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.objectives.simsiam import negative_cosine
from fedssl.objectives.teacher import Following, make_teacher
from fedssl.privacy.contract import PrivacyContract


def byol_loss(first: Tensor, second: Tensor, first_target: Tensor, second_target: Tensor) -> Tensor:
    """Return the mean squared distance of unit predictions and targets, summed over both directions: in [0, 8].

    No gradient reaches the targets.

    Args:
        first: `[batch, dim]` predictions from the first view.
        second: `[batch, dim]` predictions from the second view.
        first_target: `[batch, dim]` the teacher's embeddings of the first view.
        second_target: `[batch, dim]` the teacher's embeddings of the second view.
    """
    return 4 + 2 * (negative_cosine(first, second_target) + negative_cosine(second, first_target))


class Byol(Objective):
    """Prediction of the teacher's embedding of the other view.

    With "reset" the teacher begins every round as a copy of the model that came; where rounds are short it hardly
    leaves it, and the method is close to SimSiam.

    Args:
        hidden: Width of the hidden layer of the projector and of the predictor.
        dim: Width of an embedding.
        norm: What normalises hidden layers; without batch normalisation examples are independent of each other.
        momentum_start: Momentum of the teacher at the beginning of the run.
        momentum_end: Momentum at its end.
        teacher: What a new round does to the teacher, see `Following`.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example", frozenset({"teacher"}))
    views: tuple[Role, ...] = ("full", "full")

    def __init__(
        self,
        hidden: int = 4096,
        dim: int = 256,
        norm: HeadNorm = "batch",
        momentum_start: float = 0.99,
        momentum_end: float = 1.0,
        teacher: Literal["reset", "keep", "ema_global"] = "keep",
    ) -> None:
        at_least(1, hidden=hidden, dim=dim)
        within(0, 1, momentum_start=momentum_start, momentum_end=momentum_end)
        self.hidden = hidden
        self.dim = dim
        self.norm = norm
        self.following = Following(momentum_start, momentum_end, teacher)
        self.min_batch = 2 if norm == "batch" else 1

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector, the predictor and the teacher, which has no predictor."""
        projector = mlp([encoder.feature_dim, self.hidden, self.dim], self.norm)
        return {
            "projector": projector,
            "predictor": mlp([self.dim, self.hidden, self.dim], self.norm),
            "teacher": make_teacher(backbone=encoder, projector=projector),
        }

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of two views."""
        images = torch.cat(batch.views)
        embeddings: Tensor = model["projector"](model["backbone"](images))
        predictions: Tensor = model["predictor"](embeddings)
        teacher = cast(nn.ModuleDict, model["teacher"])
        with torch.no_grad():
            targets: Tensor = teacher["projector"](teacher["backbone"](images))
        loss = byol_loss(*predictions.chunk(2), *targets.chunk(2))
        return Step(loss=loss, metrics=collapse(embeddings[: len(embeddings) // 2]))

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Prepare the teacher for the model that came."""
        self.following.begin_round(model, first=first)

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Move the teacher towards the trained network."""
        self.following.after_step(model, progress)
