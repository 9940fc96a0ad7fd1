"""SimCLR: two views of an image attract, views of other images repel (Chen 2020).

"A Simple Framework for Contrastive Learning of Visual Representations".
"""

import torch
from torch import Tensor, nn

from fedssl.checks import above, at_least
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.nt_xent import nt_xent
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract


class SimClr(Objective):
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

    contract = PrivacyContract("batch")
    views: tuple[Role, ...] = ("full", "full")
    min_batch = 2  # an example alone has nothing to be told from

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
        embeddings: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        first, second = embeddings.chunk(2)
        metrics = {"num-negatives": 2.0 * len(first) - 2, **collapse(first)}
        return Step(loss=nt_xent(first, second, self.temperature), metrics=metrics)
