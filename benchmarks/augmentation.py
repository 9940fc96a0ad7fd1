"""What augmentation adds to an epoch of SimCLR: images of CIFAR's shape, a small network, one core.

    python -m benchmarks.augmentation   # two minutes

Every row is the same epoch of `fedssl.training.loop.fit`. In the first the views were made beforehand: what the others
take beyond it is reading, drawing and augmenting. Torchvision's transforms work image by image, as a loader's do.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import v2

from benchmarks.measure import arguments, report
from fedssl.compose import load
from fedssl.config import build
from fedssl.data.arrays import ArrayDataset
from fedssl.models.bundle import build_bundle
from fedssl.models.image import ImageEncoder
from fedssl.objectives.objective import Batch, Role
from fedssl.objectives.simclr import SimClr
from fedssl.seeding import generator
from fedssl.training import loop
from fedssl.training.augment import Augmentation

STREAM = loop.Stream(seed=0, partition=0, round=1)
PRESETS = ("symmetric", "symmetric augmentation.full.blur=0.5", "asymmetric", "vicreg")
READY, TORCHVISION, STRONG = "views made beforehand", "symmetric, by torchvision", "strong views of semi"


@dataclass
class PerImage:
    """The symmetric preset by torchvision, image by image."""

    transform: v2.Transform
    num_uniforms: int = 0

    def __call__(self, clips: Tensor, uniforms: NDArray[np.float64], role: Role, ordinal: int) -> Tensor:
        """Return one view of each clip."""
        return torch.stack([self.transform(clip[:, 0]) for clip in clips]).unsqueeze(2)


class Strong:
    """The strong views of an augmentation, whatever is asked for."""

    def __init__(self, augmentation: Augmentation) -> None:
        self._augmentation = augmentation
        self.num_uniforms = augmentation.num_uniforms

    def __call__(self, clips: Tensor, uniforms: NDArray[np.float64], role: Role, ordinal: int) -> Tensor:
        """Return one view of each clip."""
        return self._augmentation(clips, uniforms, "strong", ordinal)


def torchvision() -> PerImage:
    """Return what papers on CIFAR-10 use."""
    jitter = v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8)
    crop = v2.RandomResizedCrop(32, scale=(0.08, 1.0), antialias=True)
    steps = [crop, v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2), v2.ToDtype(torch.float32, scale=True)]
    return PerImage(v2.Compose(steps))


def plain() -> ImageEncoder:
    """Return four convolutions of stride 2."""
    widths = (3, 32, 64, 128, 128)
    layers = [(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()) for a, b in pairwise(widths)]
    return ImageEncoder(nn.Sequential(*(layer for pair in layers for layer in pair)), 128, (0.5,), (0.25,))


def epoch(examples: loop.Examples, batch_size: int, batches: Callable[..., Batch]) -> tuple[float, float]:
    """Return the seconds of one core that an epoch takes, and its loss."""
    objective = SimClr(hidden=256, dim=128)
    model = build_bundle(plain, objective, seed=0)
    schedule = loop.Schedule(epochs=1, batch_size=batch_size, learning_rate_factor=1.0, max_grad_norm=0.0)
    optimizer = partial(torch.optim.SGD, lr=0.03, momentum=0.9)
    with patch.object(loop, "make_batch", batches):
        begun = time.process_time()
        metrics = loop.fit(model, objective, examples, optimizer, schedule, STREAM)
        return time.process_time() - begun, metrics["loss"]


def made(examples: loop.Examples, batch_size: int) -> list[Batch]:
    """Return the batches of an epoch."""
    kept: list[Batch] = []
    make_batch = loop.make_batch

    def keep(*given: object) -> Batch:
        kept.append(make_batch(*given))  # type: ignore[arg-type]
        return kept[-1]

    epoch(examples, batch_size, keep)
    return kept


def main() -> None:
    """Measure and write the table."""
    chosen = arguments(__doc__, images=1024, batch_size=128, repeats=25)
    torch.set_num_threads(1)
    number = chosen["images"]
    pixels = generator(0, "pixels").integers(0, 256, (number, 1, 32, 32, 3), dtype=np.uint8)
    dataset = ArrayDataset(np.zeros(number, np.int64), ("any",), ("",) * number, pixels)
    ways: dict[str, Augmentation] = {
        preset: build(load(f"augmentation={preset}"), "augmentation") for preset in PRESETS
    }
    ways[STRONG] = Strong(build(load("augmentation=semi"), "augmentation"))
    ways[TORCHVISION] = torchvision()
    examples = {name: loop.Examples(dataset, np.arange(number), way) for name, way in ways.items()}
    ready, make_batch = made(examples["symmetric"], chosen["batch_size"]), loop.make_batch

    def once(name: str) -> tuple[float, float]:
        given: Iterator[Batch] = iter(ready)
        batches = (lambda *_: next(given)) if name == READY else make_batch
        return epoch(examples["symmetric" if name == READY else name], chosen["batch_size"], batches)

    names = (READY, *ways)
    losses = {name: once(name)[1] for name in names}
    if losses[READY] != losses["symmetric"]:
        raise RuntimeError(f"views made beforehand must give the same loss, got {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(chosen["repeats"]):
        for name in names:
            seconds[name].append(once(name)[0])
    rows = []
    for name, each in seconds.items():
        middle, ratios = median(each), [one / bare for one, bare in zip(each, seconds[READY], strict=True)]
        spread = "" if name == READY else f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([name, f"{middle:.3f}", f"{median(ratios):.2f}", spread, f"{number / middle:.0f}"])
    header = ["views", "s of one core an epoch", "ratio to ready views", "least to greatest", "images/s"]
    note = (
        f"{number} images in two views of 32 x 32 each, batches of {chosen['batch_size']}, four convolutions; medians"
    )
    report("augmentation", "What augmentation adds to an epoch of SimCLR", header, rows,
           [f"{note} of {chosen['repeats']} repeats that take turns, of the process's own time."])  # fmt: skip


if __name__ == "__main__":
    main()
