"""Gradients of a layer's parameters for single examples, from the layer's inputs and the gradients of its outputs.

A weight's gradient is a sum over positions of outer products. Its norm needs only the products of positions with each
other (the ghost norm, Goodfellow 2015, "Efficient Per-Example Gradient Computations"; Li 2022, "Large Language Models
Can Be Strong Differentially Private Learners"); where positions are many it is cheaper to form the gradient itself
(the mixed ghost norm, Bu 2022, "Scalable and Efficient Training of Large Convolutional Neural Networks with
Differential Privacy").
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fedssl.privacy.calls import kind

_WEIGHTS: tuple[Callable[..., Tensor], ...] = (conv1d_weight, conv2d_weight, conv3d_weight)


@dataclass(frozen=True, slots=True)
class PerExample:
    """The gradients of one parameter.

    Attributes:
        squares: `[batch]` float64, of their L2 norms.
        weighted: Returns their sum, each times its factor, of factors `[batch]`.
    """

    squares: Tensor
    weighted: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Pass:
    """One call of a layer, grouped by example.

    Attributes:
        inputs: `[batch, rows, ...]`.
        gradients: `[batch, rows, ...]` of the loss by the outputs.
    """

    inputs: Tensor
    gradients: Tensor


def layer_gradients(layer: nn.Module, passes: Sequence[Pass]) -> dict[str, PerExample]:
    """Return the gradients of a layer's trainable parameters by their names in it, of all its calls.

    Args:
        layer: One of `RULES`.
        passes: Its calls, at least one.
    """
    rule = RULES[cast(type[nn.Module], kind(layer, RULES))]
    rules = {"weight": rule, "bias": _bias}
    return {
        name: rules[name](layer, passes)
        for name, parameter in layer.named_parameters(recurse=False)
        if parameter.requires_grad
    }


def _whole(gradients: Tensor) -> PerExample:
    """Return gradients `[batch, ...]` that are formed."""
    rows = gradients.flatten(1)
    squares = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
    return PerExample(squares, lambda factors: (factors @ rows).view(gradients.shape[1:]))


def _outer(left: Tensor, right: Tensor, weight: Tensor, weighted: Callable[[Tensor], Tensor]) -> PerExample:
    """Return gradients that are sums over positions of outer products.

    Args:
        left: `[batch, groups, rows, positions]`; `weight` has `groups * rows` rows.
        right: `[batch, groups, columns, positions]`.
        weight: The parameter.
        weighted: As of `PerExample`, without the gradients.
    """
    (rows, positions), columns = left.shape[2:], right.shape[2]
    # products of positions are summed in double precision, or a small norm would be lost between large terms
    if 2 * positions * (rows + columns) < rows * columns:
        one, other = left.double(), right.double()
        gram = (one.mT @ one) * (other.mT @ other)
        return PerExample(gram.sum(dim=(1, 2, 3)).clamp_min(0.0), weighted)
    return _whole((left @ right.mT).reshape(-1, *weight.shape))


def _linear(layer: nn.Module, passes: Sequence[Pass]) -> PerExample:
    # [batch, rows, ..., features] -> [batch, positions, features]
    inputs = _joined([each.inputs.flatten(1, -2) for each in passes], 1)
    gradients = _joined([each.gradients.flatten(1, -2) for each in passes], 1)

    def weighted(factors: Tensor) -> Tensor:
        return (gradients * factors[:, None, None]).flatten(0, 1).T @ inputs.flatten(0, 1)

    return _outer(gradients.mT[:, None], inputs.mT[:, None], cast(Tensor, layer.weight), weighted)


def _convolution(layer: nn.Module, passes: Sequence[Pass]) -> PerExample:
    layer = cast(_ConvNd, layer)
    # a transposed convolution is the gradient of a convolution: inputs and gradients change places
    transposed = isinstance(layer, _ConvTransposeNd)
    pairs = [(each.gradients, each.inputs) if transposed else (each.inputs, each.gradients) for each in passes]
    pairs = [(_padded(layer, seen), given) for seen, given in pairs]

    def weighted(factors: Tensor) -> Tensor:
        native = _WEIGHTS[len(layer.kernel_size) - 1]
        settings = (layer.stride, 0, layer.dilation, layer.groups)
        rows = factors.view(-1, *[1] * (layer.weight.dim()))
        sums = [
            native(seen.flatten(0, 1), layer.weight.shape, (given * rows).flatten(0, 1), *settings)
            for seen, given in pairs
        ]
        return torch.stack(sums).sum(dim=0)

    left = _joined([_positions(given) for _, given in pairs], 2).unflatten(1, (layer.groups, -1))
    right = _joined([_patches(layer, seen) for seen, _ in pairs], 2).unflatten(1, (layer.groups, -1))
    return _outer(left, right, layer.weight, weighted)


def _joined(calls: Sequence[Tensor], dim: int) -> Tensor:
    """Return the positions of all calls one after the other, without a copy where there is one call."""
    return calls[0] if len(calls) == 1 else torch.cat(list(calls), dim)


def _positions(rows: Tensor) -> Tensor:
    """Return `[batch, channels, rows * positions]` of `[batch, rows, channels, ...]`."""
    return rows.flatten(3).transpose(1, 2).flatten(2)


def _padded(layer: _ConvNd, rows: Tensor) -> Tensor:
    """Return `[batch, rows, channels, ...]` with the padding of a convolution around it."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    amounts = layer._reversed_padding_repeated_twice
    if any(amounts):
        rows = F.pad(rows.flatten(0, 1), amounts, mode=mode).unflatten(0, rows.shape[:2])
    return rows


def _patches(layer: _ConvNd, rows: Tensor) -> Tensor:
    """Return what the kernel sees, `[batch, channels * kernel, rows * positions]`."""
    dims = len(layer.kernel_size)
    windows = rows
    for dim, (size, stride, step) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 3):
        windows = windows.unfold(dim, step * (size - 1) + 1, stride)[..., ::step]
    # [batch, rows, channels, *positions, *kernel] -> [batch, channels, *kernel, rows, *positions]
    order = (0, 2, *range(3 + dims, 3 + 2 * dims), 1, *range(3, 3 + dims))
    return windows.permute(order).flatten(dims + 2).flatten(1, dims + 1)


def _group_norm(layer: nn.Module, passes: Sequence[Pass]) -> PerExample:
    layer = cast(nn.GroupNorm, layer)

    def normalised(rows: Tensor) -> Tensor:
        return F.group_norm(rows, layer.num_groups, eps=layer.eps)

    return _scale(passes, normalised)


def _frozen_batch_norm(layer: nn.Module, passes: Sequence[Pass]) -> PerExample:
    layer = cast(_BatchNorm, layer)  # in evaluation mode: the engines refuse the other

    def normalised(rows: Tensor) -> Tensor:
        return F.batch_norm(rows, layer.running_mean, layer.running_var, eps=layer.eps)

    return _scale(passes, normalised)


def _scale(passes: Sequence[Pass], normalised: Callable[[Tensor], Tensor]) -> PerExample:
    products = [each.gradients.flatten(0, 1) * normalised(each.inputs.flatten(0, 1)) for each in passes]
    rows = [product.unflatten(0, each.inputs.shape[:2]) for product, each in zip(products, passes, strict=True)]
    return _whole(torch.stack([_channel_sums(each) for each in rows]).sum(dim=0))


def _layer_norm(layer: nn.Module, passes: Sequence[Pass]) -> PerExample:
    layer = cast(nn.LayerNorm, layer)
    shape = list(layer.normalized_shape)
    products = [each.gradients * F.layer_norm(each.inputs, shape, eps=layer.eps) for each in passes]
    return _whole(torch.stack([each.flatten(1, -1 - len(shape)).sum(dim=1) for each in products]).sum(dim=0))


def _bias(layer: nn.Module, passes: Sequence[Pass]) -> PerExample:
    bias = cast(Tensor, layer.bias)
    if isinstance(layer, nn.Linear | nn.LayerNorm):
        sums = [each.gradients.flatten(1, -1 - bias.dim()).sum(dim=1) for each in passes]
    else:
        sums = [_channel_sums(each.gradients) for each in passes]
    return _whole(torch.stack(sums).sum(dim=0))


def _channel_sums(rows: Tensor) -> Tensor:
    """Return `[batch, channels]` of `[batch, rows, channels, ...]`."""
    return rows.flatten(3).sum(dim=(1, 3)) if rows.dim() > 3 else rows.sum(dim=1)


_CONVOLUTIONS: tuple[type[nn.Module], ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
RULES: Mapping[type[nn.Module], Callable[[nn.Module, Sequence[Pass]], PerExample]] = {
    nn.Linear: _linear,
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _frozen_batch_norm),
}
"""The gradients of the weights of the layers that are known."""
