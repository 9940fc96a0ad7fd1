"""The one local loop: epochs of seeded draws, batched augmentation and steps."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.data.dataset import Dataset
from fedssl.objectives.objective import Batch, Draw, Objective
from fedssl.seeding import generator, torch_stream
from fedssl.training.augment import ClipAugmentation

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
    """

    epochs: int
    batch_size: int
    learning_rate_factor: float
    max_grad_norm: float


@dataclass(frozen=True, slots=True)
class Examples:
    """A client's examples, and how they become batches."""

    dataset: Dataset
    indices: NDArray[np.int64]
    augmentation: ClipAugmentation


def fit(
    model: nn.ModuleDict,
    objective: Objective,
    examples: Examples,
    make_optimizer: OptimizerFactory,
    schedule: Schedule,
    stream: Stream,
) -> dict[str, float]:
    """Train `model` in place and return the mean of every logged number, "loss" first.

    Raises:
        FloatingPointError: The loss stopped being a finite number.
        ValueError: The client holds fewer examples than the objective's smallest batch.
    """
    if len(examples.indices) < objective.min_batch:
        raise ValueError(f"{len(examples.indices)} examples are fewer than the smallest batch, {objective.min_batch}")
    optimizer = make_optimizer(parameter for parameter in model.parameters() if parameter.requires_grad)
    for group in optimizer.param_groups:
        group["lr"] *= schedule.learning_rate_factor
    logs: dict[str, list[float]] = {}
    model.train()
    with torch_stream(stream.seed, "train", stream.partition, stream.round):
        for batch in _batches(model, objective, examples, schedule, stream):
            step = objective.step(model, batch)
            if not torch.isfinite(step.loss):
                raise FloatingPointError(f"the loss became {step.loss.item()} at step {len(logs.get('loss', []))}")
            optimizer.zero_grad(set_to_none=True)
            step.loss.backward()
            if schedule.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(model.parameters(), schedule.max_grad_norm)
            optimizer.step()
            for name, value in {"loss": step.loss.item(), **step.metrics}.items():
                logs.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in logs.items()} | {"num-steps": float(len(logs["loss"]))}


def _batches(
    model: nn.ModuleDict, objective: Objective, examples: Examples, schedule: Schedule, stream: Stream
) -> Iterator[Batch]:
    device = next(model.parameters()).device
    for epoch in range(schedule.epochs):
        order = generator(stream.seed, "order", stream.partition, stream.round, epoch).permutation(examples.indices)
        for start in range(0, len(order), schedule.batch_size):
            chosen = order[start : start + schedule.batch_size]
            if len(chosen) >= objective.min_batch:
                yield _batch(objective, examples, chosen, (stream, epoch), device)


def _batch(
    objective: Objective,
    examples: Examples,
    indices: NDArray[np.int64],
    when: tuple[Stream, int],
    device: torch.device,
) -> Batch:
    clips, parameters, targets = [], [], []
    for index in indices:
        views, draw, rows = _example(objective, examples, int(index), when)
        clips.append(views)
        parameters.extend(rows)
        targets.append(draw.target)
    stacked = torch.from_numpy(np.stack(clips)).to(device)  # [batch, views, frames, height, width, channels]
    flat = stacked.flatten(0, 1).permute(0, 4, 1, 2, 3).contiguous()
    augmented: Tensor = examples.augmentation.apply(flat, np.stack(parameters))
    return Batch(
        views=augmented.unflatten(0, stacked.shape[:2]),
        targets=torch.tensor(targets, device=device),
        indices=torch.from_numpy(np.asarray(indices)).to(device),
    )


def _example(
    objective: Objective, examples: Examples, index: int, when: tuple[Stream, int]
) -> tuple[NDArray[np.uint8], Draw, list[NDArray[np.float32]]]:
    stream, epoch = when
    path = (stream.partition, stream.round, epoch, index)
    video = examples.dataset.read(index)
    if len(video) < objective.min_frames:
        raise ValueError(f"example {index} has {len(video)} frames, the objective needs {objective.min_frames}")
    draw = objective.draw(len(video), generator(stream.seed, "draw", *path))
    rows = [
        examples.augmentation.draw(generator(stream.seed, "augment", *path, view)) for view in range(len(draw.frames))
    ]
    return video[draw.frames], draw, rows
