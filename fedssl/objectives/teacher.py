"""A teacher that follows the trained network: the mean teacher of MoCo, BYOL, DINO (He 2020; Grill 2020)."""

import copy
import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from fedssl.checks import one_of, within

TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class Following:
    """How a teacher follows: an exponential mean whose momentum rises over the run, and what a new round does to it.

    Attributes:
        start: Momentum at the beginning of the run.
        end: Momentum at its end.
        on_round: "reset" makes the teacher a copy of the model that came, "keep" lets it go on from where it was on
            this client, "ema_global" moves it one step towards the model that came. A client that takes part for the
            first time always begins with a copy.

    Raises:
        ValueError: An argument is out of range.
    """

    start: float = 0.99
    end: float = 1.0
    on_round: Literal["reset", "keep", "ema_global"] = "keep"

    def __post_init__(self) -> None:
        within(0, 1, start=self.start, end=self.end)
        one_of(("reset", "keep", "ema_global"), on_round=self.on_round)

    def momentum(self, progress: float) -> float:
        """Return the momentum when `progress` of the run is done: from start to end along half a cosine."""
        return self.end - (self.end - self.start) * (math.cos(math.pi * progress) + 1) / 2

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Prepare the teacher for the model that has just come."""
        if first or self.on_round == "reset":
            _follow(model, 0.0)
        elif self.on_round == "ema_global":
            _follow(model, self.start)

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Move the teacher towards the trained network."""
        _follow(model, self.momentum(progress))


def make_teacher(**online: nn.Module) -> nn.ModuleDict:
    """Return a copy of the given groups that no optimizer trains, for the group "teacher" of a bundle.

    Args:
        online: The groups it follows by name, e.g. `backbone=encoder, projector=projector`.
    """
    teacher = nn.ModuleDict({name: copy.deepcopy(module) for name, module in online.items()})
    for parameter in teacher.parameters():
        parameter.requires_grad = False
    return teacher


@torch.no_grad()
def _follow(model: nn.ModuleDict, momentum: float) -> None:
    """Set each teacher parameter to `momentum * itself + (1 - momentum) * the trained one`; buffers are copied."""
    teacher = cast(nn.ModuleDict, model[TEACHER])
    for name, follower in teacher.items():
        online = model[name]
        for parameter, target in zip(follower.parameters(), online.parameters(), strict=True):
            parameter.mul_(momentum).add_(target, alpha=1 - momentum)
        for buffer, source in zip(follower.buffers(), online.buffers(), strict=True):
            buffer.copy_(source)
