"""WAD: labels and weights from a frozen teacher that learned without labels (Du 2023).

"Semi-Supervised Learning via Weight-aware Distillation under Class Distribution Mismatch": unlabelled examples may be
of classes that nobody labelled. One of these is about as near to other classes as to its nearest, and counts little.
"""

import copy
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from fedssl.models.bundle import load
from fedssl.models.encoder import Encoder
from fedssl.models.encoder_file import read_encoder
from fedssl.objectives.objective import Population
from fedssl.objectives.pseudo_labels import Rule, Seen, Targets
from fedssl.objectives.queue import unit
from fedssl.objectives.supervised import class_sums


def _without_teacher(module: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
    """Leave the teacher out of what a client remembers: it is the same file everywhere, and never changes."""
    for name in [name for name in state if name.startswith(f"{prefix}teacher.")]:
        del state[name]


class Prototypes(nn.Module):
    """A frozen encoder, and what the classes look like to it: here, and in the federation where a server says so.

    Args:
        teacher: The encoder.
        num_classes: Classes.
    """

    means: Tensor  # [num_classes, feature_dim], of unit features of this client's labelled examples
    counts: Tensor  # [num_classes] that they are of
    shared_means: Tensor  # the same over clients
    shared_counts: Tensor

    def __init__(self, teacher: Encoder, num_classes: int) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False).eval()
        self.register_state_dict_post_hook(_without_teacher)  # type: ignore[no-untyped-call]
        for prefix in ("", "shared_"):
            self.register_buffer(f"{prefix}means", torch.zeros(num_classes, teacher.feature_dim))
            self.register_buffer(f"{prefix}counts", torch.zeros(num_classes))

    def train(self, mode: bool = True) -> "Prototypes":
        """Set the mode of this module; the teacher always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def features(self, views: Tensor) -> Tensor:
        """Return the teacher's features of views, at unit length, `[n, feature_dim]`."""
        return unit(self.teacher(views))

    @torch.no_grad()
    def learn(self, features: Tensor, labels: Tensor) -> None:
        """Take unit features `[n, feature_dim]` of classes `[n]` int64 into the means of this client."""
        sums, counts = class_sums(features, labels, len(self.counts))
        self.counts += counts
        self.means += (sums - counts[:, None] * self.means) / self.counts.clamp(min=1)[:, None]

    def of_classes(self) -> tuple[Tensor, Tensor]:
        """Return the prototypes `[num_classes, feature_dim]`, and which there are, `[num_classes]` bool.

        A class's prototype is that of the federation, or where it knows none this client's own.
        """
        shared = self.shared_counts > 0
        return torch.where(shared[:, None], self.shared_means, self.means), shared | (self.counts > 0)

    def judge(self, features: Tensor) -> Targets:
        """Return what examples with these features are taken for, see `nearest`."""
        return nearest(features, *self.of_classes())


class Wad(Rule):
    """The class whose prototype is nearest to the teacher, weighted by how much nearer it is than the next.

    A prototype is the mean direction of the teacher's features of labelled examples. With client=local_training these
    are the client's own, and one without labels has nothing to learn from; with client=wad and strategy=class_means
    they are those of all clients.

    Args:
        teacher: File of an encoder of an earlier run, with the architecture of this run's; None is refused when a model
            is built.
    """

    coupling = "global_state"

    def __init__(self, teacher: str | None = None) -> None:
        self.teacher = teacher

    def build(self, encoder: Encoder, population: Population) -> nn.Module:
        """Return the teacher without prototypes.

        Raises:
            ValueError: There is no file, or it is none of an encoder of this architecture.
        """
        if self.teacher is None:
            raise ValueError("rule.teacher must be the file of an encoder (give it or init), got None")
        teacher = copy.deepcopy(encoder)
        try:
            arrays = read_encoder(Path(self.teacher))
            if missing := sorted(set(teacher.state_dict()) - set(arrays)):
                raise ValueError(f"{missing[0]} is missing")
            load(teacher, arrays)
        except (OSError, ValueError) as error:
            wanted = f"must be the file of an encoder like this run's ({error})"
            raise ValueError(f"rule.teacher {wanted}, got {self.teacher}") from error
        return Prototypes(teacher, population.num_classes)

    def learn(self, state: nn.Module | None, labelled: Seen, labels: Tensor) -> None:
        """Take labelled examples into this client's prototypes."""
        prototypes = cast(Prototypes, state)
        prototypes.learn(prototypes.features(labelled.views), labels)

    def targets(self, state: nn.Module | None, unlabelled: Seen) -> Targets:
        """Return the nearest classes, and how much nearer they are than the next."""
        prototypes = cast(Prototypes, state)
        return prototypes.judge(prototypes.features(unlabelled.views))


@torch.no_grad()
def nearest(features: Tensor, prototypes: Tensor, known: Tensor) -> Targets:
    """Return the class of the greatest cosine, weighted by its distance to the second greatest, which is at most 1.

    Args:
        features: `[n, feature_dim]`.
        prototypes: `[num_classes, feature_dim]`, of any length.
        known: `[num_classes]` bool, which classes have a prototype. With fewer than two, all weights are 0.
    """
    cosines = unit(features) @ unit(prototypes).to(features.dtype).T
    best = cosines.masked_fill(~known, -torch.inf).topk(2, dim=1)
    margins = (best.values[:, 0] - best.values[:, 1]).clamp(max=1)
    return Targets(best.indices[:, 0], margins if int(known.sum()) > 1 else torch.zeros_like(margins))
