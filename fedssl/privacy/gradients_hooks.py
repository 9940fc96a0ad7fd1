"""Clipped gradients from the per-sample gradients of Opacus (Yousefpour 2021).

"Opacus: User-Friendly Differential Privacy Library in PyTorch". Opacus knows rows; those of one example are added up
before they are clipped.
"""

import warnings
from collections import Counter
from typing import cast

import torch
from torch import Tensor, nn

from fedssl.objectives.objective import Batch, Objective
from fedssl.privacy.calls import OTHERWISE, check_uses, consecutive_rows, owners, record
from fedssl.privacy.gradients import Gradients, clipped_sums, trainable

_LEFT_BEHIND = ("activations", "max_batch_len")


def hooks(model: nn.ModuleDict, objective: Objective, batch: Batch, clip: float, weights: Tensor) -> Gradients:
    """Return the clipped sums of a batch, see `Engine`.

    Raises:
        ValueError: A layer has no rule of Opacus, is in evaluation mode, or gives something that the loss does not
            depend on; or as of `ghost`.
    """
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    layers = owners(model, dict.fromkeys(GradSampleHooks.GRAD_SAMPLERS))
    resting = [layer for layer, module in layers.items() if not module.training]
    if resting:
        raise ValueError(f"layers must be in training mode for Opacus, got {', '.join(resting)}; {OTHERWISE}")
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    attached = GradSampleHooks(model, loss_reduction="sum", strict=False)
    try:
        step, calls = record(model, objective, batch, layers)
        check_uses(step.loss, layers, Counter(call.layer for call in calls))
        with warnings.catch_warnings():  # of the first layer, whose input has no gradient
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            torch.autograd.grad(step.loss, list(parameters.values()), allow_unused=True)
        samples = {name: cast(Tensor | None, vars(parameter)["grad_sample"]) for name, parameter in parameters.items()}
    finally:
        attached.cleanup()
        for module in model.modules():
            for name in _LEFT_BEHIND:
                vars(module).pop(name, None)
    size = len(weights)
    numbers = consecutive_rows(model, objective, batch, layers, calls)
    consecutive = dict(zip((call.layer for call in calls), numbers, strict=True))
    grouped = {
        name: _of_examples(rows, size, consecutive[name.rpartition(".")[0]])
        for name, rows in samples.items()
        if rows is not None
    }
    # the loss is a mean, of which an example's own is `size` times its part
    sums, norms = clipped_sums(grouped, clip, weights, size)
    sums = {name: torch.zeros_like(parameter) for name, parameter in trainable(model).items()} | sums
    metrics = {name: float(value) for name, value in step.metrics.items()}
    return Gradients(sums, norms, step.loss.item(), metrics)


def _of_examples(rows: Tensor, size: int, consecutive: int) -> Tensor:
    """Return sums over the rows of each example, `[size, ...]`."""
    return rows if len(rows) == size else rows.unflatten(0, (-1, size, consecutive)).sum(dim=(0, 2))
