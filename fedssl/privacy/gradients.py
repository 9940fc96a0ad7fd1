"""Sums of the clipped gradients of single examples (Abadi 2016, "Deep Learning with Differential Privacy").

An example is the unit: all its views, and all draws of them (De 2022, "Unlocking High-Accuracy Differentially Private
Image Classification through Scale", where it is augmentation multiplicity), give one gradient, which is clipped once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from fedssl.checks import above, at_least, one_of
from fedssl.objectives.objective import Batch, Objective
from fedssl.privacy.norms import mixes

EngineName = Literal["ghost", "functional", "hooks"]


@dataclass(frozen=True, slots=True)
class Gradients:
    """What a batch gives to a noised step.

    Attributes:
        sums: The sum over the examples of their clipped gradients, by name of the trainable parameter.
        norms: `[examples]` float64 L2 norms of the examples' gradients before clipping, over all trainable parameters.
        loss: Mean loss of the batch; NaN where it is empty.
        metrics: Numbers of the objective.
    """

    sums: Mapping[str, Tensor]
    norms: Tensor
    loss: float
    metrics: Mapping[str, float]


class Engine(Protocol):
    """A way to the sums; it leaves the parameters and their `grad` as they were.

    Layers that draw, such as dropout, draw from PyTorch's default generator, as in a plain step. Nothing else does.
    """

    def __call__(
        self,
        model: nn.ModuleDict,
        objective: Objective,
        batch: Batch,
        clip: float,
        draws: int = 1,
        weights: Tensor | None = None,
    ) -> Gradients:
        """Return the sums of a batch.

        Args:
            model: The bundle.
            objective: Its loss is the mean over the examples of a batch of what each has alone.
            batch: May be empty. Row r is of example r % examples.
            clip: Largest L2 norm of an example's gradient in the sums.
            draws: Rows of each example, of whose losses its own is the mean.
            weights: `[examples]` factors of the clipped gradients in the sums; None: 1.

        Raises:
            ValueError: The engine cannot tell the examples' gradients apart.
        """


class _Weighted(Protocol):
    """What an engine does with a batch that is not empty; see there."""

    def __call__(
        self, model: nn.ModuleDict, objective: Objective, batch: Batch, clip: float, weights: Tensor
    ) -> Gradients: ...


def engine(name: EngineName) -> Engine:
    """Return an engine.

    Args:
        name: "ghost" takes one forward and one backward pass and knows the usual layers, "functional" knows
            everything and takes the most time and memory, "hooks" takes the gradients of Opacus.

    Raises:
        ValueError: The name is unknown.
    """
    one_of(get_args(EngineName), engine=name)
    chosen: _Weighted
    # each of them imports what is above
    if name == "ghost":
        from fedssl.privacy.gradients_ghost import ghost as chosen
    elif name == "functional":
        from fedssl.privacy.gradients_functional import functional as chosen
    else:
        from fedssl.privacy.gradients_hooks import hooks as chosen

    def checked(
        model: nn.ModuleDict,
        objective: Objective,
        batch: Batch,
        clip: float,
        draws: int = 1,
        weights: Tensor | None = None,
    ) -> Gradients:
        above(0, clip=clip)
        at_least(1, draws=draws)
        if len(batch.places) % draws:
            raise ValueError(f"draws must divide the rows of the batch, {len(batch.places)}, got {draws}")
        coupling = objective.contract.coupling
        if coupling != "per_example":
            raise ValueError(f"the objective's coupling must be per_example, got {coupling}")
        mixing = [layer for layer, module in model.named_modules() if mixes(module)]
        if mixing:
            raise ValueError(f"no layer must mix the examples of a batch, got {', '.join(mixing)}")
        if not len(batch.places):
            sums = {key: torch.zeros_like(parameter) for key, parameter in trainable(model).items()}
            return Gradients(sums, batch.places.new_zeros(0, dtype=torch.float64), float("nan"), {})
        if weights is None:
            weights = batch.places.new_ones(len(batch.places) // draws, dtype=torch.float64)
        return chosen(model, objective, batch, clip, weights)

    return checked


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters by name, without their graphs."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def clip_factors(norms: Tensor, clip: float) -> Tensor:
    """Return what scales gradients of these norms down to at most `clip`; 0 for a norm that is not finite.

    Args:
        norms: `[batch]`.
        clip: The largest norm.

    Returns:
        `[batch]` in [0, 1].
    """
    factors = (clip / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1.0)
    return torch.where(norms.isfinite(), factors, 0.0)


def clipped_sums(
    gradients: Mapping[str, Tensor], clip: float, weights: Tensor, scale: float = 1.0
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the weighted sums of clipped gradients by parameter, and the norms before `[batch]`.

    Args:
        gradients: `[batch, ...]` by parameter, of all of them.
        clip: The largest norm.
        weights: `[batch]` factors of the clipped gradients.
        scale: Multiplies the gradients.
    """
    flat = {name: rows.reshape(len(rows), -1) for name, rows in gradients.items()}
    each = [torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) for rows in flat.values()]
    norms = scale * torch.linalg.vector_norm(torch.stack(each), dim=0)
    factors = scale * clip_factors(norms, clip) * weights
    lost = ~norms.isfinite()
    if lost.any():  # zero times what is not finite is not zero
        flat = {name: rows.masked_fill(lost[:, None], 0.0) for name, rows in flat.items()}
    sums = {name: (factors.to(rows.dtype) @ rows).view(gradients[name].shape[1:]) for name, rows in flat.items()}
    return sums, norms
