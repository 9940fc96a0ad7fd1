"""SimSiam: each view predicts the other, without negatives and without a teacher (Chen & He 2021).

"Exploring Simple Siamese Representation Learning".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative cosine of rows, in [-1, 1]; no gradient reaches the target.

    Args:
        prediction: `[batch, dim]`, of any length.
        target: `[batch, dim]`, of any length.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    cosines = F.cosine_similarity(prediction.to(dtype), target.detach().to(dtype), dim=1, eps=1e-12)
    return -cosines.mean()


def simsiam_loss(first: Tensor, second: Tensor, first_target: Tensor, second_target: Tensor) -> Tensor:
    """Return the mean negative cosine of predicting each view's target from the other view, in [-1, 1].

    Args:
        first: `[batch, dim]` predictions from the first view.
        second: `[batch, dim]` predictions from the second view.
        first_target: `[batch, dim]` embeddings of the first view.
        second_target: `[batch, dim]` embeddings of the second view.
    """
    return 0.5 * (negative_cosine(first, second_target) + negative_cosine(second, first_target))


class SimSiam(Objective):
    """Prediction of the other view's embedding by cosine.

    It may collapse without a sign in the loss, which then goes to -1: watch "embedding-std" fall from 1 to 0.

    Args:
        hidden: Width of the projector's two hidden layers.
        dim: Width of an embedding.
        bottleneck: Width of the predictor's hidden layer.
        norm: What normalises the projector and the predictor's hidden layer; without batch normalisation examples are
            independent of each other, but collapse is likelier.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example")
    views: tuple[Role, ...] = ("full", "full")

    def __init__(self, hidden: int = 2048, dim: int = 2048, bottleneck: int = 512, norm: HeadNorm = "batch") -> None:
        at_least(1, hidden=hidden, dim=dim, bottleneck=bottleneck)
        self.hidden = hidden
        self.dim = dim
        self.bottleneck = bottleneck
        self.norm = norm
        self.min_batch = 2 if norm == "batch" else 1

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector and the predictor."""
        widths = [encoder.feature_dim, self.hidden, self.hidden, self.dim]
        return {
            "projector": mlp(widths, self.norm, last_norm=True),
            "predictor": mlp([self.dim, self.bottleneck, self.dim], self.norm),
        }

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of two views."""
        embeddings: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        predictions: Tensor = model["predictor"](embeddings)
        loss = simsiam_loss(*predictions.chunk(2), *embeddings.chunk(2))
        return Step(loss=loss, metrics=collapse(embeddings[: len(embeddings) // 2]))
