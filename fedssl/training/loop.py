"""The one local loop: epochs of seeded draws, batched augmentation and steps."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.data.dataset import Dataset
from fedssl.objectives.objective import Batch, Draw, Objective
from fedssl.seeding import generator, torch_stream
from fedssl.seeding import uniforms as keyed_uniforms
from fedssl.training.augment import Augmentation

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class Stream:
    """The names that make a client's randomness in a round its own."""

    seed: int
    partition: int
    round: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the client's examples.
        batch_size: Examples a step.
        learning_rate_factor: Multiplies the optimizer's learning rate in this round.
        max_grad_norm: Gradients are scaled down to this L2 norm; 0 leaves them.
        progress: Shares of the whole run that are done before and after this round.
    """

    epochs: int
    batch_size: int
    learning_rate_factor: float
    max_grad_norm: float
    progress: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Examples:
    """A client's examples, and how they become batches."""

    dataset: Dataset
    indices: NDArray[np.int64]
    augmentation: Augmentation


class LocalRule:
    """What a federated method adds to local steps; this one adds nothing."""

    def penalty(self, model: nn.ModuleDict, batch: Batch) -> Tensor | None:
        """Return what is added to the loss of a batch, or None."""
        return None

    def correct(self, model: nn.ModuleDict) -> None:
        """Change the gradients of `model` in place, after they are limited and before the optimizer's step."""


def fit(
    model: nn.ModuleDict,
    objective: Objective,
    examples: Examples,
    make_optimizer: OptimizerFactory,
    schedule: Schedule,
    stream: Stream,
    rule: LocalRule | None = None,
) -> dict[str, float]:
    """Train `model` in place and return the mean of every logged number, "loss" first, and "num-steps".

    Raises:
        FloatingPointError: The loss stopped being a finite number.
        ValueError: The client holds fewer examples than the objective's smallest batch.
    """
    if min(len(examples.indices), schedule.batch_size) < objective.min_batch:
        what = f"{len(examples.indices)} examples in batches of {schedule.batch_size}"
        raise ValueError(f"{what} are fewer than the objective's smallest batch, {objective.min_batch}")
    rule = rule or LocalRule()
    optimizer = make_optimizer(parameter for parameter in model.parameters() if parameter.requires_grad)
    for group in optimizer.param_groups:
        group["lr"] *= schedule.learning_rate_factor
    logs: dict[str, list[float]] = {}
    begun, end = schedule.progress
    model.train()
    with torch_stream(stream.seed, "train", stream.partition, stream.round):
        for batch, done in _batches(model, objective, examples, schedule, stream):
            step = objective.step(model, batch)
            penalty = rule.penalty(model, batch)
            loss = step.loss if penalty is None else step.loss + penalty
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss.item()} at step {len(logs.get('loss', []))}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if schedule.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(model.parameters(), schedule.max_grad_norm)
            rule.correct(model)
            optimizer.step()
            objective.after_step(model, begun + (end - begun) * done)
            extra = {} if penalty is None else {"penalty": penalty.item()}
            for name, value in {"loss": step.loss.item(), **step.metrics, **extra}.items():
                logs.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in logs.items()} | {"num-steps": float(len(logs["loss"]))}


def _batches(
    model: nn.ModuleDict, objective: Objective, examples: Examples, schedule: Schedule, stream: Stream
) -> Iterator[tuple[Batch, float]]:
    """Yield each batch with the share of the client's work that is done once it is learned from."""
    device = next(model.parameters()).device
    total = schedule.epochs * len(examples.indices)
    for epoch in range(schedule.epochs):
        rng = generator(stream.seed, "order", stream.partition, stream.round, epoch)
        order = rng.permutation(len(examples.indices))
        for start in range(0, len(order), schedule.batch_size):
            places = order[start : start + schedule.batch_size]
            if len(places) >= objective.min_batch:
                done = (epoch * len(order) + start + len(places)) / total
                yield make_batch(objective, examples, places, stream, epoch, device), done


def make_batch(
    objective: Objective,
    examples: Examples,
    places: NDArray[np.int64],
    stream: Stream,
    epoch: int,
    device: torch.device,
) -> Batch:
    """Return the views of some of a client's examples; what is random in an example's does not depend on the others.

    Args:
        objective: Says which frames and which views.
        examples: The client's.
        places: `[batch]` places among `examples.indices`.
        stream: Names of the client and its round.
        epoch: From 0.
        device: Where views are made.

    Raises:
        ValueError: An example has fewer frames than the objective needs, or examples have different sizes.
    """
    indices = examples.indices[places]

    def uniforms(columns: int, *purpose: int | str) -> NDArray[np.float64]:
        path = (*purpose, stream.partition, stream.round, epoch)
        return keyed_uniforms(stream.seed, *path, rows=indices, columns=columns)

    own = uniforms(objective.num_uniforms, "draw")
    clips, targets = _read(objective, examples.dataset, indices, own)
    counts: Counter[str] = Counter()
    views = []
    for view, role in enumerate(objective.views):
        # [batch, views, frames, height, width, channels] -> [batch, channels, frames, height, width]
        pixels = torch.from_numpy(clips[:, view]).to(device).permute(0, 4, 1, 2, 3).contiguous()
        drawn = uniforms(examples.augmentation.num_uniforms, "augment", view)
        views.append(examples.augmentation(pixels, drawn, role, counts[role]))
        counts[role] += 1
    return Batch(
        views=tuple(views),
        targets=torch.tensor(targets, device=device),
        places=torch.from_numpy(places).to(device),
        uniforms=torch.from_numpy(own).to(device),
    )


def _read(
    objective: Objective, dataset: Dataset, indices: NDArray[np.int64], uniforms: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the frames of every view `[batch, views, frames, height, width, channels]`, and the targets."""
    clips, targets = [], []
    draws: dict[int, Draw] = {}
    for index, own in zip(indices, uniforms, strict=True):
        video = dataset.read(int(index))
        if len(video) < objective.min_frames:
            raise ValueError(f"example {index} has {len(video)} frames, the objective needs {objective.min_frames}")
        # an objective that takes no numbers draws the same from every video of a length
        if objective.num_uniforms or len(video) not in draws:
            draws[len(video)] = objective.draw(len(video), own)
        draw = draws[len(video)]
        clips.append(video[draw.frames])
        targets.append(draw.target)
    return np.stack(clips), targets
