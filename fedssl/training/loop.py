"""The one local loop: epochs of seeded draws, batched augmentation and steps."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.data.dataset import Dataset
from fedssl.objectives.objective import UNKNOWN, Batch, Draw, Objective
from fedssl.seeding import generator, torch_stream
from fedssl.seeding import uniforms as keyed_uniforms
from fedssl.training.augment import Augmentation
from fedssl.training.diagnostics import PseudoLabelTally, gradient_angle
from fedssl.training.precision import Precision, computing, laid_out

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
        precision: What steps are computed in.
    """

    epochs: int
    batch_size: int
    learning_rate_factor: float
    max_grad_norm: float
    progress: tuple[float, float] = (0.0, 1.0)
    precision: Precision = "float32"


@dataclass(frozen=True, slots=True)
class Examples:
    """A client's examples, and how they become batches.

    Attributes:
        dataset: Holds them, among others.
        indices: `[n]` of the client's.
        augmentation: Makes their views.
        labels: `[n]` classes, `UNKNOWN` where the client knows none; None where it knows none at all.
        truth: `[n]` classes that pseudo-labels are compared with in a simulation; None where nobody knows. No
            objective sees them.
    """

    dataset: Dataset
    indices: NDArray[np.int64]
    augmentation: Augmentation
    labels: NDArray[np.int64] | None = None
    truth: NDArray[np.int64] | None = None

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Whether each label is known, `[n]`."""
        return np.zeros(len(self.indices), np.bool_) if self.labels is None else self.labels != UNKNOWN


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

    Where the objective takes unlabelled examples for a class, the share it learns from is logged as "pseudo-label
    coverage", and how often it is right, where anybody knows, as "pseudo-label accuracy", see `PseudoLabelTally`; the
    "gradient angle" between its supervised and unsupervised terms is that of the first step.

    Raises:
        FloatingPointError: The loss stopped being a finite number.
        ValueError: The client holds fewer examples than the objective's smallest batch.
    """
    if min(len(examples.indices), schedule.batch_size) < objective.min_batch:
        what = f"{len(examples.indices)} examples in batches of {schedule.batch_size}"
        raise ValueError(f"{what} are fewer than the objective's smallest batch, {objective.min_batch}")
    rule = rule or LocalRule()
    optimizer = scheduled(make_optimizer, model, schedule)
    logs: dict[str, list[float]] = {}
    tally = PseudoLabelTally(examples.truth)
    begun, end = schedule.progress
    model.train()
    device = next(model.parameters()).device
    names = (stream.seed, "train", stream.partition, stream.round)
    with torch_stream(*names), computing(model, schedule.precision, device):
        for batch, done in _batches(model, objective, examples, schedule, stream):
            batch = laid_out(batch, schedule.precision)
            step = objective.step(model, batch)
            penalty = rule.penalty(model, batch)
            loss = step.loss if penalty is None else step.loss + penalty
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss.item()} at step {len(logs.get('loss', []))}")
            if step.terms is not None and "gradient angle" not in logs:
                logs["gradient angle"] = gradient_angle(model, step.terms)
            tally.add(step.pseudo_labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if schedule.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(model.parameters(), schedule.max_grad_norm)
            rule.correct(model)
            optimizer.step()
            objective.after_step(model, begun + (end - begun) * done)
            extra = {} if penalty is None else {"penalty": penalty.item()}
            for name, value in {"loss": step.loss.item(), **step.metrics, **extra}.items():
                logs.setdefault(name, []).append(float(value))
    means = {name: float(np.mean(values)) for name, values in logs.items() if values}
    return means | tally.shares() | {"num-steps": float(len(logs["loss"]))}


def scheduled(make_optimizer: OptimizerFactory, model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Return an optimizer of what is trained in `model`, at this round's learning rate."""
    optimizer = make_optimizer(parameter for parameter in model.parameters() if parameter.requires_grad)
    for group in optimizer.param_groups:
        group["lr"] *= schedule.learning_rate_factor
    return optimizer


def _batches(
    model: nn.ModuleDict, objective: Objective, examples: Examples, schedule: Schedule, stream: Stream
) -> Iterator[tuple[Batch, float]]:
    """Yield each batch with the share of the client's work that is done once it is learned from."""
    device = next(model.parameters()).device
    earlier = _earlier(examples.indices)
    for epoch in range(schedule.epochs):
        rng = generator(stream.seed, "order", stream.partition, stream.round, epoch)
        labelled = examples.labelled
        ratio = objective.unlabelled_ratio
        if ratio is None or labelled.all() or not labelled.any():
            steps = _in_order(len(examples.indices), schedule.batch_size, rng)
        else:
            steps = _mixed(labelled, ratio, schedule.batch_size, rng)
        for number, (places, visits) in enumerate(steps, 1):
            if len(places) >= objective.min_batch:
                visits = visits * (1 + earlier.max()) + earlier[places]
                batch = make_batch(objective, examples, places, stream, epoch, device, visits)
                yield batch, (epoch + number / len(steps)) / schedule.epochs


_Steps = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Of each step the places of its examples, and how often each was there in this epoch before."""


def _earlier(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often the example of each place stands at places before it, `[n]`: 0 where nothing is repeated."""
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    begins = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    earlier = np.empty_like(order)
    earlier[order] = np.arange(len(order)) - np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    return earlier


def _in_order(number: int, batch_size: int, rng: np.random.Generator) -> _Steps:
    order = rng.permutation(number)
    batches = (order[start : start + batch_size] for start in range(0, number, batch_size))
    return [(places, np.zeros_like(places)) for places in batches]


def _mixed(labelled: NDArray[np.bool_], ratio: int, batch_size: int, rng: np.random.Generator) -> _Steps:
    """Return steps of which each has its share of labelled examples, until the kind that lasts longer is through."""
    known, unknown = np.flatnonzero(labelled), np.flatnonzero(~labelled)
    num_known = max(1, batch_size // (1 + ratio))
    num_unknown = max(1, batch_size - num_known)
    number = -(-max(len(known) * num_unknown, len(unknown) * num_known) // (num_known * num_unknown))
    parts = [_cycled(kind, number * size, rng) for kind, size in ((known, num_known), (unknown, num_unknown))]
    halves = [[np.split(column, number) for column in part] for part in parts]
    return [
        (np.concatenate((known_places, places)), np.concatenate((known_visits, visits)))
        for known_places, known_visits, places, visits in zip(*halves[0], *halves[1], strict=True)
    ]


def _cycled(places: NDArray[np.int64], number: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
    """Return `number` of the places, in another order each time they begin anew, and which time it is."""
    rounds = -(-number // len(places))
    order = np.concatenate([rng.permutation(places) for _ in range(rounds)])
    return order[:number], np.repeat(np.arange(rounds), len(places))[:number]


def make_batch(
    objective: Objective,
    examples: Examples,
    places: NDArray[np.int64],
    stream: Stream,
    epoch: int,
    device: torch.device,
    visits: NDArray[np.int64] | None = None,
) -> Batch:
    """Return the views of some of a client's examples; what is random in an example's does not depend on the others.

    Args:
        objective: Says which frames and which views.
        examples: The client's.
        places: `[batch]` places among `examples.indices`.
        stream: Names of the client and its round.
        epoch: From 0.
        device: Where views are made.
        visits: `[batch]` how often each example was learned from in this epoch before; None: never.

    Raises:
        ValueError: An example has fewer frames than the objective needs, or examples have different sizes.
    """
    indices = examples.indices[places]
    # an example that comes twice in an epoch gets other views
    rows = indices if visits is None else indices + visits * len(examples.dataset)

    def uniforms(columns: int, *purpose: int | str) -> NDArray[np.float64]:
        path = (*purpose, stream.partition, stream.round, epoch)
        return keyed_uniforms(stream.seed, *path, rows=rows, columns=columns)

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
    labels = np.full(len(places), UNKNOWN) if examples.labels is None else examples.labels[places]
    return Batch(
        views=tuple(views),
        targets=torch.tensor(targets, device=device),
        places=torch.from_numpy(places).to(device),
        uniforms=torch.from_numpy(own).to(device),
        labels=torch.from_numpy(labels).to(device),
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
