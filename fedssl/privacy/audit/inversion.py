"""Gradient inversion: images from the gradient that they had (Geiping et al. 2020).

"Inverting Gradients - How easy is it to break privacy in federated learning?"
"""

from collections.abc import Callable, Sequence
from math import inf, log10

import torch
from torch import Tensor

from fedssl.checks import above, at_least
from fedssl.seeding import torch_stream

Gradients = Sequence[Tensor]


def linear_input(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """Return the input `[inputs]` of a linear layer with a bias exactly, from the gradient of one example.

    Args:
        weight_gradient: `[outputs, inputs]`.
        bias_gradient: `[outputs]`; the row where it is greatest is divided by it.

    Raises:
        ValueError: The gradient of the bias is zero.
    """
    row = int(bias_gradient.abs().argmax())
    if bias_gradient[row] == 0:
        raise ValueError("bias_gradient must not be zero, got all zeros")
    return weight_gradient[row] / bias_gradient[row]


def invert(
    loss: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    gradients: Gradients,
    shape: Sequence[int],
    *,
    steps: int = 1000,
    learning_rate: float = 0.1,
    smoothness: float = 1e-4,
    seed: int = 0,
) -> Tensor:
    """Return images whose gradient points where the observed one does.

    What fails is this attack at this strength; that tells of no guarantee.

    Args:
        loss: Returns the loss of images `shape`; whatever else it needs, such as labels, it knows.
        parameters: Tensors that the gradients are of.
        gradients: The observed update by its learning rate, one for each of `parameters`.
        shape: `[batch, channels, height, width]` of the images, with values in [0, 1].
        steps: Of the search.
        learning_rate: Of the search, by the signs of its own gradient; it ends at a tenth of this.
        smoothness: Weight of the total variation of the images.
        seed: Of the images that the search begins with.

    Raises:
        ValueError: An argument is out of range, or the gradients are not of the shapes of the parameters.
    """
    at_least(1, steps=steps)
    above(0, learning_rate=learning_rate)
    at_least(0, smoothness=smoothness)
    if [tuple(one.shape) for one in gradients] != [tuple(one.shape) for one in parameters]:
        raise ValueError("gradients must have the shapes of the parameters, got others")
    with torch_stream(seed, "audit", "inversion"):
        images = torch.rand(tuple(shape)).to(parameters[0]).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for _ in range(steps):
        own = torch.autograd.grad(loss(images), list(parameters), create_graph=True)
        distance = 1 - _cosine(own, gradients) + smoothness * total_variation(images)
        (images.grad,) = torch.autograd.grad(distance, [images])
        images.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach()


def total_variation(images: Tensor) -> Tensor:
    """Return the mean difference of neighbouring pixels, down plus across, of images `[..., height, width]`."""
    return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()


def psnr(images: Tensor, originals: Tensor) -> float:
    """Return the peak signal-to-noise ratio in decibels of values in [0, 1]; infinite where both are the same."""
    error = float((images - originals).square().mean())
    return -10 * log10(error) if error else inf


def identification_rate(images: Tensor, originals: Tensor, others: Tensor) -> float:
    """Return the share of `originals` that are the nearest neighbour of one of `images`; the order does not count.

    Args:
        images: `[n, ...]` what was recovered.
        originals: `[m, ...]` what the gradient came from.
        others: `[k, ...]` what else it could have been.
    """
    candidates = torch.cat((originals, others)).flatten(1)
    nearest = torch.cdist(images.flatten(1), candidates).argmin(dim=1)
    return len(set(nearest.tolist()) & set(range(len(originals)))) / len(originals)


def _cosine(first: Gradients, second: Gradients) -> Tensor:
    product = torch.stack([(one * other).sum() for one, other in zip(first, second, strict=True)]).sum()
    norms = [torch.stack([one.square().sum() for one in tensors]).sum().sqrt() for tensors in (first, second)]
    return product / (norms[0] * norms[1]).clamp_min(torch.finfo(product.dtype).tiny)
