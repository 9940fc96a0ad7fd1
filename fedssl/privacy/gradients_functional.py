"""Clipped gradients by differentiating the step of every example alone, many at once with `torch.func`.

The definition, for any network: its parameters need not belong to layers, and may be used in any way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedssl.objectives.objective import Batch, Objective
from fedssl.privacy.gradients import Gradients, clipped_sums, trainable

_NUMBERS = 2**26  # of gradients that are held at once


@dataclass(frozen=True, slots=True)
class _Alone(Batch):
    """One example; whether its label is known is the same for all that are differentiated at once.

    Attributes:
        known: Whether it is.
    """

    known: bool

    @property
    def labelled(self) -> Tensor:
        return torch.full((len(self.places),), self.known, device=self.places.device)


class _Stepper(nn.Module):
    """An objective's step as a module, so that its parameters can be replaced.

    Args:
        model: The bundle.
        objective: Owner of the step.
    """

    def __init__(self, model: nn.ModuleDict, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective.step(self.model, batch).loss


def functional(model: nn.ModuleDict, objective: Objective, batch: Batch, clip: float, weights: Tensor) -> Gradients:
    """Return the clipped sums of a batch, see `Engine`; an unlabelled example gives what it would give alone."""
    parameters = trainable(model)
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    norms = torch.zeros_like(weights)
    losses = torch.zeros_like(norms)
    most = max(1, _NUMBERS // max(1, sum(parameter.numel() for parameter in parameters.values())))
    for known in (True, False):
        for chosen in (batch.labelled[: len(weights)] == known).nonzero()[:, 0].split(most):
            if not len(chosen):
                continue
            gradients, own = _each(_Stepper(model, objective), parameters, batch, len(weights), chosen, known)
            losses[chosen] = own.to(losses.dtype)
            more, norms[chosen] = clipped_sums(gradients, clip, weights[chosen])
            for name, each in more.items():
                sums[name] += each
    with torch.no_grad(), torch.random.fork_rng(devices=[norms.device] if norms.is_cuda else []):
        metrics = objective.step(model, batch).metrics  # of one example alone some of them say nothing
    return Gradients(sums, norms, losses.mean().item(), {name: float(value) for name, value in metrics.items()})


def _each(
    stepper: _Stepper, parameters: Mapping[str, Tensor], batch: Batch, size: int, chosen: Tensor, known: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Return gradients `[n, ...]` by parameter and losses `[n]` of the chosen of `size` examples."""

    def loss(values: Mapping[str, Tensor], views: tuple[Tensor, ...], *rest: Tensor) -> Tensor:
        targets, places, uniforms, labels = rest
        alone = _Alone(views, targets, places, uniforms, labels, known)
        return cast(Tensor, functional_call(stepper, dict(values), (alone,)))

    def grouped(rows: Tensor) -> Tensor:  # [draws, examples, ...]
        rows = rows.unflatten(0, (-1, size))
        return rows[:, chosen]

    views = tuple(grouped(view) for view in batch.views)
    rest = (grouped(rows) for rows in (batch.targets, batch.places, batch.uniforms, batch.labels))
    values = {f"model.{name}": parameter for name, parameter in parameters.items()}
    each = vmap(grad_and_value(loss), in_dims=(None, *[1] * 5), randomness="different")
    gradients, losses = each(values, views, *rest)
    return {name.removeprefix("model."): rows for name, rows in gradients.items()}, losses
