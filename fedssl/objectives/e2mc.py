"""E2MC: maximum entropy and minimum covariance of another objective's embeddings (Chakraborty 2025).

"Improving Pre-trained Self-Supervised Embeddings Through Effective Entropy Maximization": a pre-trained host is trained
on with it for a few epochs.
"""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.checks import at_least, one_of
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Batch, Draw, Objective, Population, Step
from fedssl.objectives.vicreg import covariance_penalty
from fedssl.privacy.contract import PrivacyContract

_EPSILON = 1e-7  # added to spacings, whose logarithm is taken


class E2mc(Objective):
    """Another objective plus a term that makes each dimension of its projector's embeddings uniform on (0, 1).

    Args:
        host: The other objective, which builds a "projector".
        entropy_weight: Weight of the entropy of the dimensions, which grows.
        covariance_weight: Weight of the covariances between dimensions, which shrink.
        mapping: How embeddings get into (0, 1): by the "sigmoid", for a host that takes them as they are, or by the
            distribution function of a "normal" variable, for one that normalises them: the directions of normal
            embeddings are uniform.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        host: Objective,
        entropy_weight: float = 10.0,
        covariance_weight: float = 1.0,
        mapping: Literal["sigmoid", "normal"] = "sigmoid",
    ) -> None:
        at_least(0, entropy_weight=entropy_weight, covariance_weight=covariance_weight)
        one_of(("sigmoid", "normal"), mapping=mapping)
        self.host = host
        self.entropy_weight = entropy_weight
        self.covariance_weight = covariance_weight
        self.uniform_map = sigmoid_map if mapping == "sigmoid" else normal_map
        self.contract = PrivacyContract("batch", host.contract.private_groups)
        self.views = host.views
        self.min_batch = max(16, host.min_batch)  # an entropy of fewer is mostly noise
        self.min_frames = host.min_frames
        self.num_uniforms = host.num_uniforms

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose frames as the host does."""
        return self.host.draw(num_frames, uniforms)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the host's groups.

        Raises:
            ValueError: If there is no projector among them.
        """
        groups = self.host.build(encoder, population)
        if "projector" not in groups:
            raise ValueError(f"host must be an objective with a projector, got {type(self.host).__name__}")
        return groups

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Prepare what the host keeps."""
        self.host.begin_round(model, first=first)

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the host's loss with the mean entropy of its full views, and the sum of their covariances."""
        outputs: list[Tensor] = []
        # read as they pass, so that the network runs once
        handle = model["projector"].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            step = self.host.step(model, batch)
        finally:
            handle.remove()
        chunks = [chunk for output in outputs for chunk in output.split(len(batch.places))]
        views = [self.uniform_map(chunk) for chunk in chunks[: self.views.count("full")]]
        entropy = torch.stack([spacing_entropy(view) for view in views]).mean()
        covariance = torch.stack([covariance_penalty(view) for view in views]).sum()
        loss = step.loss - self.entropy_weight * entropy + self.covariance_weight * covariance
        logs = {"host-loss": step.loss.item(), "e2mc-entropy": entropy.item(), "e2mc-covariance": covariance.item()}
        return Step(loss=loss, metrics={**step.metrics, **logs})

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Move what the host moves."""
        self.host.after_step(model, progress)


def spacing_entropy(values: Tensor) -> Tensor:
    """Return the mean differential entropy of the columns, in nats, estimated from the distances of m-th neighbours.

    The estimate is Vasicek's (1976), with m the root of n. No density on (0, 1) has more than the uniform, 0.

    Args:
        values: `[n, dim]` in (0, 1), n at least 2.
    """
    number = len(values)
    step = round(math.sqrt(number))
    ordered = values.sort(dim=0, stable=True).values
    spacings = (ordered[step:] - ordered[:-step]) * ((number + 1) / step)
    return (spacings + _EPSILON).log().mean()


def sigmoid_map(embeddings: Tensor) -> Tensor:
    """Return the sigmoid of embeddings `[n, dim]`, in float32 or better."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)).sigmoid()


def normal_map(embeddings: Tensor) -> Tensor:
    """Return the standard normal distribution function of embeddings `[n, dim]`, in float32 or better."""
    uniform: Tensor = torch.special.ndtr(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
    return uniform
