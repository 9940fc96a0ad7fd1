"""DINO: every view predicts a teacher's sharpened and centred distribution of the others (Caron 2021).

"Emerging Properties in Self-Supervised Vision Transformers".
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import above, at_least, within
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.monitors import collapse
from fedssl.objectives.multi_crop import FULL, Progress, crop_features, cross_view, roles
from fedssl.objectives.objective import Batch, Objective, Population, Step
from fedssl.objectives.teacher import Following, make_teacher
from fedssl.privacy.contract import PrivacyContract


class DinoHead(nn.Module):
    """Maps features to cosines with prototypes; nothing else normalises the last layer's weights.

    Args:
        feature_dim: Width of a feature.
        hidden: Width of the two hidden layers.
        dim: Width of an embedding.
        num_prototypes: Width of the result.
        norm: What normalises hidden layers.
    """

    def __init__(self, feature_dim: int, hidden: int, dim: int, num_prototypes: int, norm: HeadNorm) -> None:
        super().__init__()
        layers = mlp([feature_dim, hidden, hidden, dim], norm)
        self.embed = nn.Sequential(*(nn.GELU() if isinstance(layer, nn.ReLU) else layer for layer in layers))
        self.prototypes = nn.Linear(dim, num_prototypes, bias=False)

    def forward(self, features: Tensor, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """Return the embeddings `[batch, dim]` and the logits `[batch, num_prototypes]`.

        Args:
            features: `[batch, feature_dim]`.
            frozen: Whether the prototypes get no gradient.
        """
        embeddings: Tensor = self.embed(features)
        weight = self.prototypes.weight.detach() if frozen else self.prototypes.weight
        return embeddings, F.linear(F.normalize(embeddings, dim=1), F.normalize(weight, dim=1))


class Center(nn.Module):
    """The running mean of a teacher's logits.

    Args:
        width: Width of the logits.
    """

    mean: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))

    @torch.no_grad()
    def follow(self, logits: Tensor, momentum: float) -> None:
        """Move towards the mean of logits `[n, width]`."""
        self.mean.mul_(momentum).add_(logits.mean(dim=0), alpha=1 - momentum)


class Dino(Objective):
    """Self-distillation: all views predict what the teacher makes of the two full ones.

    A client's first step of all takes itself for the first of the run.

    Args:
        hidden: Width of the head's two hidden layers.
        dim: Width of an embedding.
        num_prototypes: Width of a distribution.
        norm: What normalises the head's hidden layers.
        num_local: Small crops beside the two full views.
        temperature: The student's.
        teacher_temperature_start: The teacher's at the beginning of the run.
        teacher_temperature_end: The teacher's after the warm-up; too high a one makes every distribution uniform.
        warmup: Share of the run over which the teacher's temperature moves.
        center_momentum: Momentum of the mean of the teacher's logits, which is taken off them.
        freeze_prototypes: Share of the run at whose beginning the prototypes get no gradient.
        momentum_start: Momentum of the teacher at the beginning of the run.
        momentum_end: Momentum at its end.
        teacher: What a new round does to the teacher, see `Following`.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("global_state", frozenset({"teacher", "center", "progress"}))

    def __init__(  # noqa: PLR0913 - the settings of one configuration file, all of them flat
        self,
        hidden: int = 2048,
        dim: int = 256,
        num_prototypes: int = 4096,
        norm: HeadNorm = "none",
        num_local: int = 0,
        temperature: float = 0.1,
        teacher_temperature_start: float = 0.04,
        teacher_temperature_end: float = 0.07,
        warmup: float = 0.05,
        center_momentum: float = 0.9,
        freeze_prototypes: float = 0.001,
        momentum_start: float = 0.9995,
        momentum_end: float = 1.0,
        teacher: Literal["reset", "keep", "ema_global"] = "keep",
    ) -> None:
        at_least(1, hidden=hidden, dim=dim, num_prototypes=num_prototypes)
        above(0, temperature=temperature)
        above(0, teacher_temperature_start=teacher_temperature_start, teacher_temperature_end=teacher_temperature_end)
        within(0, 1, warmup=warmup, center_momentum=center_momentum, freeze_prototypes=freeze_prototypes)
        within(0, 1, momentum_start=momentum_start, momentum_end=momentum_end)
        self.widths = (hidden, dim, num_prototypes)
        self.norm = norm
        self.temperature = temperature
        self.teacher_temperatures = (teacher_temperature_start, teacher_temperature_end)
        self.warmup = warmup
        self.center_momentum = center_momentum
        self.freeze_prototypes = freeze_prototypes
        self.following = Following(momentum_start, momentum_end, teacher)
        self.views = roles(num_local)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the head, the teacher of backbone and head, the centre and the progress."""
        head = DinoHead(encoder.feature_dim, *self.widths, self.norm)
        teacher = make_teacher(backbone=encoder, head=head)
        return {"head": head, "teacher": teacher, "center": Center(self.widths[2]), "progress": Progress()}

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Prepare the teacher for the model that came."""
        self.following.begin_round(model, first=first)

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of all views, and move the centre."""
        center, teacher = cast(Center, model["center"]), cast(nn.ModuleDict, model["teacher"])
        progress, number = float(cast(Progress, model["progress"]).done), len(batch.places)
        features = crop_features(model["backbone"], batch.views)
        embeddings, logits = model["head"](features, frozen=progress < self.freeze_prototypes)
        with torch.no_grad():
            _, expected = teacher["head"](crop_features(teacher["backbone"], batch.views[:FULL]))
        targets = centred_softmax(expected, center.mean, self.teacher_temperature(progress))
        loss = cross_view(targets.split(number), (logits / self.temperature).split(number))
        center.follow(expected, self.center_momentum)
        return Step(loss=loss, metrics=target_spread(targets) | collapse(embeddings[:number]))

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Move the teacher towards the trained network."""
        self.following.after_step(model, progress)
        cast(Progress, model["progress"]).done.fill_(progress)

    def teacher_temperature(self, progress: float) -> float:
        """Return the teacher's temperature when `progress` of the run is done; it moves in a straight line."""
        start, end = self.teacher_temperatures
        return end if progress >= self.warmup else start + (end - start) * progress / self.warmup


def centred_softmax(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Return a teacher's distributions `[n, k]`, in float32 or better.

    Args:
        logits: `[n, k]`.
        center: `[k]`, taken off every row, so that no column wins everywhere.
        temperature: The lower, the sharper.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.softmax((logits - center) / temperature, dim=1)


@torch.no_grad()
def target_spread(targets: Tensor) -> dict[str, float]:
    """Return the two signs of a collapsing teacher, in nats from 0 to log k.

    Args:
        targets: Distributions `[n, k]`.

    Returns:
        "teacher-entropy", of a distribution: log k when all are uniform; "teacher-kl-uniform", from their mean to the
        uniform distribution: log k when all choose the same column.
    """
    mean = targets.mean(dim=0)
    return {
        "teacher-entropy": float(-torch.xlogy(targets, targets).sum(dim=1).mean()),
        "teacher-kl-uniform": math.log(len(mean)) + float(torch.xlogy(mean, mean).sum()),
    }
