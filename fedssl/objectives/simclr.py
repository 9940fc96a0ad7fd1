"""SimCLR: two views of an image attract, views of other images repel (Chen 2020).

"A Simple Framework for Contrastive Learning of Visual Representations".
"""

from torch import nn

from fedssl.checks import above, at_least
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.nt_xent import TwoViews, nt_xent
from fedssl.objectives.objective import Batch, Population, Step


class SimClr(TwoViews):
    """Contrast of images with the others of their batch.

    A batch offers `2 * batch - 2` negatives, logged as "num-negatives", and they are all of one client: a client of
    fewer than 32 images has little to contrast with, and one of few classes has many negatives of the same class.

    Args:
        temperature: Temperature of the cosines.
        hidden: Width of the projector's hidden layer.
        dim: Width of an embedding.
        norm: What normalises the projector's hidden layer.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, temperature: float = 0.2, hidden: int = 2048, dim: int = 256, norm: HeadNorm = "none") -> None:
        above(0, temperature=temperature)
        at_least(1, hidden=hidden, dim=dim)
        self.temperature = temperature
        self.hidden = hidden
        self.dim = dim
        self.norm = norm

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector."""
        return {"projector": mlp([encoder.feature_dim, self.hidden, self.dim], self.norm)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of two views."""
        first, second = self.embeddings(model, batch)
        metrics = {"num-negatives": 2.0 * len(first) - 2, **collapse(first)}
        return Step(loss=nt_xent(first, second, self.temperature), metrics=metrics)
