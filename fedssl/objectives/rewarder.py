"""The rewarder of SemiReward, and the generator that tries it (Li 2024), each with an Adam of its own."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

_WIDTH = 128
_DECAYS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's


class Rewarder(nn.Module):
    """How well a label goes with a feature, from 0 to 1; the reward of one depends on no other.

    Args:
        feature_dim: Width of a feature.
        num_classes: Classes.
    """

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(feature_dim, _WIDTH), nn.LayerNorm(_WIDTH))
        # a linear map of one-hot labels is an embedding that passes gradients on to them
        self.label = nn.Sequential(nn.Linear(num_classes, _WIDTH, bias=False), nn.LayerNorm(_WIDTH))
        nn.init.normal_(cast(Tensor, self.label[0].weight))
        self.attention = nn.Linear(_WIDTH, 1)
        self.mlp = nn.Sequential(nn.Linear(_WIDTH, 2 * _WIDTH), nn.ReLU(), nn.Linear(2 * _WIDTH, _WIDTH))
        self.answer = nn.Sequential(nn.Linear(_WIDTH, _WIDTH // 2), nn.ReLU(), nn.Linear(_WIDTH // 2, 1))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the rewards `[n]` of labels `[n, num_classes]`, one-hot, for features `[n, feature_dim]`."""
        tokens = torch.stack((self.feature(features), self.label(labels)), dim=1)
        attended = (self.attention(tokens).softmax(dim=1) * tokens).sum(dim=1)
        return torch.sigmoid(self.answer(self.mlp(attended)).squeeze(1))


def make_generator(feature_dim: int, num_classes: int) -> nn.Sequential:
    """Return a network from features to the logits of labels."""
    hidden = [layer for pair in pairwise((feature_dim, 256, 128, 64)) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(64, num_classes))


class Trained(nn.Module):
    """A network that learns inside a step, and is a client's own: to the optimizer of the model it is not there.

    Args:
        network: Any.
    """

    first: Tensor  # [num_parameters], the mean of gradients
    second: Tensor  # [num_parameters], and of their squares
    steps: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        zeros = torch.zeros_like(parameters_to_vector(network.parameters()))
        self.register_buffer("first", zeros)
        self.register_buffer("second", zeros.clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def leaves(self) -> dict[str, Tensor]:
        """Return the parameters by name, as tensors of which a gradient can be taken until the next step."""
        return {name: parameter.detach().requires_grad_() for name, parameter in self.network.named_parameters()}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Take a step of Adam; `gradients` are in the order of the leaves."""
        gradient = parameters_to_vector(gradients)
        self.steps += 1
        means = []
        for moment, value, decay in zip((self.first, self.second), (gradient, gradient**2), _DECAYS, strict=True):
            moment.mul_(decay).add_(value, alpha=1 - decay)
            means.append(moment / (1 - decay ** int(self.steps)))
        change = learning_rate * means[0] / (means[1].sqrt() + _EPSILON)
        parameters = list(self.network.parameters())
        for parameter, part in zip(parameters, change.split([p.numel() for p in parameters]), strict=True):
            parameter.sub_(part.view_as(parameter))
