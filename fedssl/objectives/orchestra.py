"""Orchestra: examples find the same one of the federation's clusters in every view (Lubana et al. 2022).

"Orchestra: Unsupervised Federated Learning via Globally Consistent Clustering".
"""

from typing import cast

import torch
from torch import Tensor, nn

from fedssl.checks import above, at_least, within
from fedssl.models.encoder import Encoder
from fedssl.models.heads import HeadNorm, mlp
from fedssl.objectives.answer import answer_step
from fedssl.objectives.clustering import assignment_loss
from fedssl.objectives.monitors import collapse
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.objectives.queue import Queue, unit
from fedssl.objectives.rotnet import NUM_ROTATIONS, rotations
from fedssl.objectives.teacher import TEACHER, Following, make_teacher
from fedssl.privacy.contract import PrivacyContract


class Centroids(nn.Module):
    """The global centroids `[number, dim]`, which the server learns; zeros until they come."""

    weight: Tensor

    def __init__(self, number: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(number, dim))


class Orchestra(Objective):
    """Agreement of a student's and a teacher's assignment to global centroids, and the answer to a rotation.

    It goes with client=orchestra, which puts the centroids in place and clusters the bank, and strategy=orchestra,
    which learns the centroids. The teacher stays on the client, so it begins each round as a copy of the model that
    came: features of different clients are only comparable when their teachers begin at the same point. (The authors'
    code averages teachers as well, at twice the traffic.)

    Args:
        num_centroids: Global centroids.
        hidden: Width of the projector's hidden layer.
        dim: Width of an embedding.
        temperature: Cosines with centroids are divided by it.
        momentum: Of the teacher.
        bank_size: Features of the teacher that a client clusters.
        rotation_weight: Weight of the loss of the rotation.
        norm: What normalises the projector.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("global_state", frozenset({TEACHER, "bank", "centroids"}))
    views: tuple[Role, ...] = ("full", "full", "full")
    num_uniforms = 1

    def __init__(
        self,
        num_centroids: int = 128,
        hidden: int = 512,
        dim: int = 512,
        temperature: float = 0.1,
        momentum: float = 0.996,
        bank_size: int = 128,
        rotation_weight: float = 1.0,
        norm: HeadNorm = "batch",
    ) -> None:
        at_least(1, num_centroids=num_centroids, hidden=hidden, dim=dim, bank_size=bank_size)
        above(0, temperature=temperature)
        within(0, 1, momentum=momentum)
        at_least(0, rotation_weight=rotation_weight)
        self.num_centroids = num_centroids
        self.hidden = hidden
        self.dim = dim
        self.temperature = temperature
        self.bank_size = bank_size
        self.rotation_weight = rotation_weight
        self.norm: HeadNorm = norm
        self.min_batch = 2 if norm == "batch" else 1
        self._following = Following(momentum, momentum, on_round="reset")

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector, the head that tells rotations, and what stays on the client."""
        projector = mlp([encoder.feature_dim, self.hidden, self.dim], self.norm, last_norm=True)
        return {
            "projector": projector,
            "head": nn.Linear(self.dim, NUM_ROTATIONS),
            TEACHER: make_teacher(backbone=encoder, projector=projector),
            "bank": Queue(self.bank_size, self.dim),
            "centroids": Centroids(self.num_centroids, self.dim),
        }

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Make the teacher a copy of the model that came."""
        self._following.begin_round(model, first=first)

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Move the teacher towards the student."""
        self._following.after_step(model, progress)

    @torch.no_grad()
    def features(self, model: nn.ModuleDict, views: Tensor) -> Tensor:
        """Return the teacher's features `[batch, dim]`, of length 1, of the views of one role."""
        teacher = cast(nn.ModuleDict, model[TEACHER])
        return unit(teacher["projector"](teacher["backbone"](views)))

    def bank(self, model: nn.ModuleDict) -> Queue:
        """Return the latest features of this client's examples."""
        return cast(Queue, model["bank"])

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of a batch, and keep the teacher's features of its first views in the bank.

        Raises:
            ValueError: No centroids are in place, or views to be rotated are not square.
        """
        centroids = cast(Centroids, model["centroids"]).weight
        if not centroids.any():
            raise ValueError("there are no centroids; choose client=orchestra and strategy=orchestra")
        turns = (batch.uniforms[:, 0] * NUM_ROTATIONS).long()
        taught = self.features(model, batch.views[0])
        views = torch.cat((batch.views[1], rotated(batch.views[2], turns)))
        student, turned = model["projector"](model["backbone"](views)).chunk(2)
        clustering = assignment_loss(student, taught, centroids, self.temperature)
        rotation = answer_step(model["head"](turned), turns)
        self.bank(model).write(taught)
        metrics = {"clustering": clustering.item(), "rotation": rotation.loss.item(), **rotation.metrics}
        return Step(clustering + self.rotation_weight * rotation.loss, {**metrics, **collapse(student)})


def rotated(views: Tensor, turns: Tensor) -> Tensor:
    """Return each view turned by its own number of right angles, all frames alike.

    Args:
        views: `[batch, channels, frames, side, side]`.
        turns: `[batch]` int64 in [0, 4).

    Raises:
        ValueError: The views are not square.
    """
    every: Tensor = rotations(views)[0].unflatten(0, (NUM_ROTATIONS, len(views)))
    return every[turns, torch.arange(len(views), device=views.device)]
