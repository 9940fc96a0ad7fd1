"""The step of a pretext whose answer is one of a few classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fedssl.objectives.objective import Step


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy in nats, in float32 or better; log(classes) for uniform logits.

    Args:
        logits: `[batch, classes]`.
        targets: `[batch]` int64 in [0, classes).
    """
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)


def answer_step(logits: Tensor, targets: Tensor) -> Step:
    """Return the cross entropy with "accuracy", the share of examples answered right.

    Args:
        logits: `[batch, classes]`.
        targets: `[batch]` int64 in [0, classes).
    """
    right = (logits.detach().argmax(dim=1) == targets).float().mean()
    return Step(loss=answer_loss(logits, targets), metrics={"accuracy": right})
