"""A private step against a plain one: the usual small network of private image classification, one thread.

    python -m benchmarks.private_step   # a minute on a core

Two convolutions (16 of 8x8, 32 of 4x4, stride 2) with max pooling and two linear layers on 28x28 pixels. All ways take
turns in one process; a private step clips, sums, adds noise and takes the step of SGD. The ratio is the median over
turns of a way's time over that of the plain step in the same turn.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn
from torch.nn import functional as F

from benchmarks.measure import arguments, report
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Batch, Objective, Population, Step
from fedssl.privacy.contract import PrivacyContract
from fedssl.privacy.gradients import EngineName, engine
from fedssl.seeding import torch_stream

RATE, CLIP, CLASSES = 0.1, 1.0, 10
Way = Callable[[], None]


class Classify(Objective):
    """Cross entropy of the network's own classes."""

    contract = PrivacyContract("per_example")

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return nothing."""
        return {}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of one view."""
        return Step(F.cross_entropy(model["backbone"](batch.views[0][:, :, 0]), batch.labels), {})


def network() -> nn.Sequential:
    """Return the network."""
    with torch_stream(0, "init"):
        return nn.Sequential(
            nn.Conv2d(1, 16, 8, 2, 3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(16, 32, 4, 2), nn.ReLU(),
            nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, CLASSES),
        )  # fmt: skip


def plain(batch: Batch) -> Way:
    """Return a step of SGD."""
    model, objective = nn.ModuleDict({"backbone": network()}), Classify()
    optimizer = torch.optim.SGD(model.parameters(), RATE)

    def step() -> None:
        optimizer.zero_grad()
        objective.step(model, batch).loss.backward()
        optimizer.step()

    return step


def ours(name: EngineName, batch: Batch) -> Way:
    """Return a private step with an engine of fedssl."""
    model, objective, sums_of = nn.ModuleDict({"backbone": network()}), Classify(), engine(name)
    optimizer = torch.optim.SGD(model.parameters(), RATE)

    def step() -> None:
        sums = sums_of(model, objective, batch, CLIP).sums
        for key, parameter in model.named_parameters():
            parameter.grad = (sums[key] + CLIP * torch.randn_like(parameter)) / len(batch.labels)
        optimizer.step()

    return step


def opacus_hooks(batch: Batch) -> Way:
    """Return a private step of Opacus, which forms the gradients of examples."""
    model = GradSampleModule(network())
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), RATE),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        expected_batch_size=len(batch.labels),
    )

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(batch.views[0][:, :, 0]), batch.labels).backward()
        optimizer.step()

    return step


def opacus_ghost(batch: Batch) -> Way:
    """Return a private step of Opacus with ghost clipping, which takes two backward passes."""
    model = GradSampleModuleFastGradientClipping(network(), max_grad_norm=CLIP, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), RATE),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        expected_batch_size=len(batch.labels),
    )
    criterion = DPLossFastGradientClipping(model, optimizer, nn.CrossEntropyLoss())

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(batch.views[0][:, :, 0]), batch.labels).backward()
        optimizer.step()

    return step


def seconds(way: Way, steps: int) -> float:
    """Return the mean time of a step."""
    begun = time.perf_counter()
    for _ in range(steps):
        way()
    return (time.perf_counter() - begun) / steps


def measure(size: int, turns: int, steps: int) -> list[list[str]]:
    """Return a row of the table for each way, at one size of batches."""
    images, labels = torch.rand(size, 1, 1, 28, 28), torch.arange(size) % CLASSES
    batch = Batch((images,), torch.zeros_like(labels), torch.arange(size), torch.zeros(size, 0), labels)
    ways = {
        "plain": plain(batch),
        "ghost": ours("ghost", batch),
        "functional": ours("functional", batch),
        "hooks": ours("hooks", batch),
        "Opacus, hooks": opacus_hooks(batch),
        "Opacus, ghost": opacus_ghost(batch),
    }
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            times[name].append(seconds(way, steps))
    rows = []
    for name, own in times.items():
        ratios = [mine / reference for mine, reference in zip(own, times["plain"], strict=True)]
        rows.append([str(size), name, f"{1000 * median(own):.2f}", f"{median(ratios):.2f}"])
    return rows


def main() -> None:
    """Measure and write the table."""
    chosen = arguments(__doc__, turns=15, steps=10)
    torch.set_num_threads(1)
    with torch_stream(0, "benchmark"):
        rows = [row for size in (64, 256) for row in measure(size, chosen["turns"], chosen["steps"])]
    note = (
        f'Medians over {chosen["turns"]} turns of {chosen["steps"]} steps each. "ghost", "functional" and "hooks" are '
        'the values of `privacy.engine`; "hooks" adds checks and the grouping of views to what Opacus computes.'
    )
    report("private_step", "A private step beside a plain one", ["batch", "step", "ms", "ratio"], rows, [note])


if __name__ == "__main__":
    main()
