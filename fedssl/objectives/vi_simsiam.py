"""VI-SimSiam: SimSiam that also says how sure it is of a prediction (Nakamura 2023).

"Representation Uncertainty in Self-Supervised Learning as Variational Inference", with the power spherical distribution
(De Cao & Aziz 2020). The paper's objective has further terms, of samples of the posterior; here a prediction is judged
by the likelihood of the other view's embedding alone.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract

_LEAST, _MOST = 1e-3, 100.0  # concentration for each dimension
_CLOSEST = 1e-6  # of a direction to the opposite of another, where the density is 0


def power_spherical_log_density(points: Tensor, directions: Tensor, concentrations: Tensor) -> Tensor:
    """Return the log density `[batch]`, in nats, of points on the unit sphere.

    Args:
        points: `[batch, dim]`, of any length.
        directions: `[batch, dim]` the mean directions, of any length.
        concentrations: `[batch]` at least 0; 0 is the uniform distribution.
    """
    dtype = torch.promote_types(directions.dtype, torch.float32)
    cosines = F.cosine_similarity(points.to(dtype), directions.to(dtype), dim=1, eps=1e-12)
    concentrations, b = concentrations.to(dtype), (points.shape[1] - 1) / 2
    a = b + concentrations
    log_volume = (a + b) * math.log(2) + b * math.log(math.pi) + torch.lgamma(a) - torch.lgamma(a + b)
    return concentrations * (1 + cosines).clamp_min(_CLOSEST).log() - log_volume


class SphericalPredictor(nn.Module):
    """Maps an embedding to a mean direction and a concentration.

    A concentration of about `dim` is neither near the uniform distribution nor near a point, so the network's number is
    multiplied by it: the loss is divided by `dim`, and would else begin with next to no gradient.

    Args:
        dim: Width of an embedding.
        bottleneck: Width of the hidden layer.
        norm: What normalises the hidden layer.
    """

    def __init__(self, dim: int, bottleneck: int, norm: HeadNorm) -> None:
        super().__init__()
        self.direction = mlp([dim, bottleneck, dim], norm)
        self.concentration = nn.Linear(dim, 1)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return directions `[batch, dim]`, of any length, and concentrations `[batch]` of `[batch, dim]`."""
        share = F.softplus(self.concentration(embeddings).squeeze(1)) + _LEAST
        return self.direction(embeddings), embeddings.shape[1] * share.clamp_max(_MOST)


class ViSimSiam(Objective):
    """Prediction of the distribution of the other view's embedding, with the mean "concentration" of it logged.

    An image's concentration, `model["predictor"]` of its embedding, says how sure the network is of it.

    Args:
        hidden: Width of the projector's two hidden layers.
        dim: Width of an embedding, at least 2.
        bottleneck: Width of the predictor's hidden layer.
        norm: What normalises the projector and the predictor's hidden layer; without batch normalisation examples are
            independent of each other, but collapse is likelier.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example")
    views: tuple[Role, ...] = ("full", "full")

    def __init__(self, hidden: int = 2048, dim: int = 2048, bottleneck: int = 512, norm: HeadNorm = "batch") -> None:
        at_least(1, hidden=hidden, bottleneck=bottleneck)
        at_least(2, dim=dim)
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
            "predictor": SphericalPredictor(self.dim, self.bottleneck, self.norm),
        }

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of two views: half the sum of both mean negative log densities, divided by `dim`."""
        embeddings: Tensor = model["projector"](model["backbone"](torch.cat(batch.views)))
        directions, concentrations = model["predictor"](embeddings)
        others = embeddings.detach().roll(len(embeddings) // 2, dims=0)
        loss = -power_spherical_log_density(others, directions, concentrations).mean() / self.dim
        metrics = {"concentration": concentrations.detach().mean()}
        return Step(loss=loss, metrics={**metrics, **collapse(embeddings[: len(embeddings) // 2])})
