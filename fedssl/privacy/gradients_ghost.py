"""Clipped gradients from one forward and one backward pass (Bu 2023, "book-keeping").

"Differentially Private Optimization on Large Model at Small Cost". The backward pass gives the gradients of the layers'
outputs and forms none of parameters; norms and weighted sums come from them and the layers' inputs.
"""

from collections import Counter

import torch
from torch import Tensor, nn

from fedssl.objectives.objective import Batch, Objective
from fedssl.privacy.calls import OTHERWISE, Call, check_uses, consecutive_rows, owners, record
from fedssl.privacy.gradients import Gradients, clip_factors, trainable
from fedssl.privacy.layer_gradients import RULES, Pass, PerExample, layer_gradients


def ghost(model: nn.ModuleDict, objective: Objective, batch: Batch, clip: float, weights: Tensor) -> Gradients:
    """Return the clipped sums of a batch, see `Engine`.

    Raises:
        ValueError: A parameter is not one of a known layer, or is used outside of it; rows of a layer cannot be told
            apart; a layer's input is changed in place after it was used.
    """
    layers = owners(model, RULES)
    size = len(weights)
    step, calls = record(model, objective, batch, layers)
    rows = consecutive_rows(model, objective, batch, layers, calls)
    gradients = torch.autograd.grad(step.loss, [call.outputs for call in calls], allow_unused=True)
    reached = [call for call, gradient in zip(calls, gradients, strict=True) if gradient is not None]
    check_uses(step.loss, layers, Counter(call.layer for call in reached))
    passes: dict[str, list[Pass]] = {}
    for call, number, gradient in zip(calls, rows, gradients, strict=True):
        if gradient is not None:
            passes.setdefault(call.layer, []).append(_grouped(call, gradient, size, number))
    found = _gradients(layers, passes)
    sums = trainable(model)
    # the loss is a mean, of which an example's own is `size` times its part
    norms = size * torch.stack([each.squares for each in found.values()]).sum(dim=0).sqrt()
    factors = size * clip_factors(norms, clip) * weights
    if not norms.isfinite().all():  # zero times what is not finite is not zero
        lost = ~norms.isfinite()
        cleaned = {layer: [_without(each, lost) for each in several] for layer, several in passes.items()}
        found = _gradients(layers, cleaned)
    for name, parameter in sums.items():
        own = found.get(name)
        sums[name] = torch.zeros_like(parameter) if own is None else own.weighted(factors.to(parameter.dtype))
    metrics = {name: float(value) for name, value in step.metrics.items()}
    return Gradients(sums, norms, step.loss.item(), metrics)


def _grouped(call: Call, gradient: Tensor, size: int, number: int) -> Pass:
    """Return a call with rows `[size, rows, ...]`."""
    if call.inputs._version != call.version:
        raise ValueError(f"the input of {call.layer} must not be changed in place; {OTHERWISE}")
    pair = (call.inputs, gradient)
    return Pass(*(rows.unflatten(0, (-1, size, number)).transpose(0, 1).flatten(1, 2) for rows in pair))


def _gradients(layers: dict[str, nn.Module], passes: dict[str, list[Pass]]) -> dict[str, PerExample]:
    return {
        f"{layer}.{name}": gradients
        for layer, several in passes.items()
        for name, gradients in layer_gradients(layers[layer], several).items()
    }


def _without(each: Pass, lost: Tensor) -> Pass:
    """Return a call whose lost examples are zeros."""

    def cleaned(rows: Tensor) -> Tensor:
        return rows.masked_fill(lost.view(-1, *[1] * (rows.dim() - 1)), 0.0)

    return Pass(cleaned(each.inputs), cleaned(each.gradients))
