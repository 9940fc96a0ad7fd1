"""Crops of several sizes: each predicts what the larger ones are assigned to (Caron 2020, 2021)."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least
from fedssl.objectives.objective import Role

FULL = 2  # views, the first, that are predicted


def roles(num_local: int) -> tuple[Role, ...]:
    """Return two full views and `num_local` small ones.

    Raises:
        ValueError: There are fewer than none.
    """
    at_least(0, num_local=num_local)
    full: Role = "full"
    local: Role = "local"
    return (full,) * FULL + (local,) * num_local


class Progress(nn.Module):
    """The share of the run that was done after the client's last step, for a private group; 0 before its first."""

    done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("done", torch.zeros(()))


def crop_features(backbone: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """Return the features `[views * batch, feature_dim]`, view after view.

    Args:
        backbone: Maps `[n, channels, frames, height, width]` to `[n, feature_dim]`.
        views: Each `[batch, channels, frames, height, width]`; neighbours of one size pass the backbone together.
    """
    same_size = (torch.cat(list(crops)) for _, crops in groupby(views, key=lambda view: view.shape))
    return torch.cat([backbone(crops) for crops in same_size])


def cross_view(targets: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Return the mean cross entropy, in nats, of every view's prediction of every other view's target.

    Args:
        targets: Distributions `[batch, k]` of the first views, without gradient.
        logits: `[batch, k]` of all views; those of targets come first, in the same order.
    """
    predictions = [F.log_softmax(view.to(torch.promote_types(view.dtype, torch.float32)), dim=1) for view in logits]
    losses = [
        -(target * prediction).sum(dim=1).mean()
        for place, target in enumerate(targets)
        for other, prediction in enumerate(predictions)
        if other != place
    ]
    return torch.stack(losses).mean()
