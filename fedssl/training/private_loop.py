"""Local steps along noised sums of clipped gradients (Abadi et al. 2016, "Deep Learning with Differential Privacy")."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.objectives.objective import Batch, Objective
from fedssl.privacy.clipping import clip_factor
from fedssl.privacy.example import Cell, Example, Sampled
from fedssl.privacy.gradients import engine, trainable
from fedssl.privacy.logit import Logit
from fedssl.privacy.mechanism import Terms
from fedssl.privacy.noise import NoiseKey
from fedssl.privacy.planted import Planted
from fedssl.seeding import torch_stream, uniforms
from fedssl.training.loop import Examples, LocalRule, OptimizerFactory, Schedule, Stream, make_batch, scheduled


@dataclass(frozen=True, slots=True)
class PrivateSteps:
    """A mechanism at work in one client.

    Attributes:
        mechanism: Samples and clips.
        terms: The noise of the run.
        key: What samples and noise are drawn from.
        whole: Indices of the examples that cells are cut from, where some of them are left out of training. None: the
            client trains on all of them.
        planted: Canaries among the units; None plants none.
    """

    mechanism: Sampled
    terms: Terms
    key: NoiseKey
    whole: NDArray[np.int64] | None = None
    planted: Planted | None = None


@dataclass(slots=True)
class _Sum:
    """The sum of the clipped gradients of a step's units, and what they tell."""

    totals: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def add(self, sums: Mapping[str, Tensor], loss: float, norms: list[float]) -> None:
        for name, values in sums.items():
            self.totals[name] += values
        self.losses.append(loss)
        self.norms += norms


def fit_privately(
    model: nn.ModuleDict,
    objective: Objective,
    examples: Examples,
    make_optimizer: OptimizerFactory,
    schedule: Schedule,
    stream: Stream,
    private: PrivateSteps,
    rule: LocalRule | None = None,
) -> dict[str, float]:
    """Train `model` in place; in each step every unit of the client takes part by a coin of its own.

    A step's gradient is the sum of the clipped gradients plus noise, over the expected number of units. A step that
    nobody takes part in is one of noise alone. `schedule.batch_size` is how many rows, or pairs of them, are computed
    at once.

    Returns:
        The mean "loss", the median "gradient-norm" before clipping and "num-steps".
    """
    mechanism, rule = private.mechanism, rule or LocalRule()
    optimizer = scheduled(make_optimizer, model, schedule)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    num_steps = mechanism.num_steps(schedule.epochs)
    units = _units(private, examples, stream)
    losses: list[float] = []
    norms: list[float] = []
    begun, end = schedule.progress
    model.train()
    with torch_stream(stream.seed, "train", stream.partition, stream.round):
        for step in range(num_steps):
            where = (stream.partition, stream.round, step)
            coins = private.key.generator("sample", *where).random(len(units))
            chosen = [unit for unit, coin in zip(units, coins, strict=True) if coin < mechanism.sampling_rate]
            total = _Sum({name: torch.zeros_like(value) for name, value in trainable(model).items()})
            for sums, loss, lengths in _clipped(mechanism, model, objective, examples, chosen, schedule, stream, step):
                total.add(sums, loss, lengths)
            optimizer.zero_grad(set_to_none=True)
            expected = mechanism.sampling_rate * max(len(units), 1)
            for name, noised in _noised(private, total.totals, where).items():
                parameters[name].grad = (noised / expected).to(parameters[name].dtype)
            _step(model, optimizer, rule, schedule.max_grad_norm)
            objective.after_step(model, begun + (end - begun) * (step + 1) / num_steps)
            losses += total.losses
            norms += total.norms
    means = {"loss": float(np.mean(losses)), "gradient-norm": float(np.median(norms))} if losses else {}
    return means | {"num-steps": float(num_steps)}


def _noised(private: PrivateSteps, totals: Mapping[str, Tensor], where: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return the sums of a step, with what canaries push, plus noise, in double precision."""
    release, planted, rate = private.terms.release, private.planted, private.mechanism.sampling_rate
    sums = {name: total.double() for name, total in totals.items()}
    if planted is not None:
        pushed = planted.push(release.clip, rate, private.key, *where)
        sums = {name: total + torch.from_numpy(pushed[name]).to(total.device) for name, total in sums.items()}
    for name, total in sums.items():
        noise = private.key.normal(release.noise_std, tuple(total.shape), *where, name)
        sums[name] = total + torch.from_numpy(noise).to(total.device)
    if planted is not None:
        seen = {name: total.cpu().numpy() for name, total in sums.items()}
        planted.watch(seen, release.clip, release.noise_std, rate)
    return sums


def _step(model: nn.ModuleDict, optimizer: torch.optim.Optimizer, rule: LocalRule, max_grad_norm: float) -> None:
    """Step along the noised gradients; what is added to them knows the model alone."""
    penalty = rule.penalty(model, _NOTHING)
    if penalty is not None:
        penalty.backward()
    if max_grad_norm > 0:
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    rule.correct(model)
    optimizer.step()


_NOTHING = Batch((), torch.zeros(0), torch.zeros(0), torch.zeros(0, 0), torch.zeros(0))
"""The batch that a rule is shown: no example."""


def _units(private: PrivateSteps, examples: Examples, stream: Stream) -> list[NDArray[np.int64]]:
    """Return the places of each unit among the client's examples: one each, or those of a cell."""
    mechanism, indices = private.mechanism, examples.indices
    if not isinstance(mechanism, Cell):
        return list(np.arange(len(indices))[:, None])
    # the order depends on the numbers of the examples, not on what they show, and is the same in every round; who is
    # left out leaves a gap, so that the other cells stay as they are
    whole = indices if private.whole is None else private.whole
    order = whole[uniforms(stream.seed, "cells", rows=whole, columns=1)[:, 0].argsort(kind="stable")]
    places = {int(index): place for place, index in enumerate(indices)}
    found = np.array([places.get(int(index), -1) for index in order], np.int64)
    cells = [found[start : start + mechanism.cell_size] for start in range(0, len(found), mechanism.cell_size)]
    return [cell[cell >= 0] for cell in cells]


_Clipped = Iterator[tuple[Mapping[str, Tensor], float, list[float]]]


def _clipped(
    mechanism: Sampled,
    model: nn.ModuleDict,
    objective: Objective,
    examples: Examples,
    chosen: list[NDArray[np.int64]],
    schedule: Schedule,
    stream: Stream,
    step: int,
) -> _Clipped:
    """Yield sums of clipped gradients with their mean loss and the norms before, until every chosen unit is in one."""
    device = next(model.parameters()).device

    def batch(places: NDArray[np.int64], draws: int = 1) -> Batch:
        visits = np.repeat(np.arange(draws), len(places))
        return make_batch(objective, examples, np.tile(places, draws), stream, step, device, visits)

    places = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    if isinstance(mechanism, Example):
        gradients, draws = engine(mechanism.engine), mechanism.multiplicity
        size = max(1, schedule.batch_size // draws)
        for start in range(0, len(places), size):
            part = gradients(model, objective, batch(places[start : start + size], draws), mechanism.clip, draws)
            yield part.sums, part.loss, part.norms.tolist()
    elif isinstance(mechanism, Logit):
        if len(places) >= objective.min_batch:
            part = mechanism.gradients(model, objective, batch(places), schedule.batch_size)
            yield part.sums, part.loss, part.norms.tolist()
    else:
        for cell in chosen:
            if len(cell) >= objective.min_batch:
                yield _of_cell(model, objective, batch(cell), mechanism.clip)


def _of_cell(
    model: nn.ModuleDict, objective: Objective, batch: Batch, clip: float
) -> tuple[Mapping[str, Tensor], float, list[float]]:
    """Return the clipped gradient of one cell's loss."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss = objective.step(model, batch).loss
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    given = {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}
    lengths = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in given.values()]
    length = float(torch.linalg.vector_norm(torch.stack(lengths)))
    factor = clip_factor(length, clip)
    sums = {name: factor * gradient for name, gradient in given.items()} if factor > 0 else {}
    return sums, loss.item(), [length]
