"""How fast clips come from video files, from the cache of frames and out of a training step: small3d, one core.

    python -m benchmarks.video_reading DIR   # the folder with metadata.csv; three minutes

An epoch takes an example of each video. All epochs are those of `fedssl.training.loop.fit`. For the step alone the
frames of each batch were taken beforehand: what is left is to make views on the device that trains, and the network. In
the network's row the views were made beforehand, too.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.measure import report
from fedssl.compose import load
from fedssl.config import RunConfig, build
from fedssl.data.dataset import Dataset
from fedssl.models.bundle import build_bundle
from fedssl.training import loop

OBJECTIVES = {"speed": "Speed, a clip of 8 frames", "cvrl": "CVRL, 2 clips of 8", "vcop": "VCOP, 3 clips of 6"}
Taken = Callable[..., object]
STREAM = loop.Stream(seed=0, partition=0, round=1)
NETWORK, STEP = "network alone", "step alone: views and network"
FILES, CACHE, MEMORY = "epoch from files, filling the cache", "epoch from the cache", "epoch from memory"
OPTIMIZER = partial(torch.optim.SGD, lr=0.01)
ORDER = (NETWORK, STEP, MEMORY, CACHE, FILES)


def settings(root: Path, objective: str, cache: Path | None) -> RunConfig:
    """Return the configuration that things are built from."""
    words = ["data=weizmann", f"data.root={root}", f"data.cache={cache or 'null'}", f"objective={objective}"]
    return load([*words, "partition=by_owner", "cohort=null", "model=small3d"])


def examples(config: RunConfig) -> loop.Examples:
    """Return the training videos as those of one client, opened anew."""
    train: Dataset = build(config, "data").train
    return loop.Examples(train, np.arange(len(train)), build(config, "augmentation"))


def epoch(config: RunConfig, own: loop.Examples, batch_size: int, **ready: Taken) -> tuple[float, float]:
    """Return the seconds of one core that an epoch takes, and its loss; functions of the loop may be replaced."""
    objective = build(config, "objective")
    model = build_bundle(partial(build, config, "model"), objective, seed=0)
    schedule = loop.Schedule(epochs=1, batch_size=batch_size, learning_rate_factor=1.0, max_grad_norm=0.0)
    with patch.multiple(loop, **ready) if ready else nullcontext():
        begun = time.process_time()
        metrics = loop.fit(model, objective, own, OPTIMIZER, schedule, STREAM)
        return time.process_time() - begun, metrics["loss"]


def kept(config: RunConfig, own: loop.Examples, batch_size: int, name: str) -> list[object]:
    """Return what a function of the loop returns in an epoch."""
    results: list[object] = []
    original: Taken = getattr(loop, name)

    def keep(*given: object) -> object:
        results.append(original(*given))
        return results[-1]

    epoch(config, own, batch_size, **{name: keep})
    return results


def replay(results: list[object]) -> Taken:
    """Return a function that returns them in turn."""
    given = iter(results)
    return lambda *_: next(given)


def measure(root: Path, objective: str, batch_size: int, repeats: int) -> list[list[str]]:
    """Return the rows of an objective; all ways take turns."""
    with TemporaryDirectory() as folder:
        cached, plain = settings(root, objective, Path(folder)), settings(root, objective, None)
        in_memory = examples(plain)
        frames, views = (kept(plain, in_memory, batch_size, name) for name in ("_read", "make_batch"))
        seconds: dict[str, list[float]] = {name: [] for name in ORDER}
        losses = set()
        for _ in range(repeats):
            for name in (FILES, CACHE, MEMORY, STEP, NETWORK):
                if name == FILES:
                    shutil.rmtree(folder)
                own = examples(cached) if name in (FILES, CACHE) else in_memory
                ready = {STEP: {"_read": replay(frames)}, NETWORK: {"make_batch": replay(views)}}.get(name, {})
                spent, loss = epoch(cached, own, batch_size, **ready)
                seconds[name].append(spent)
                losses.add(loss)
        if len(losses) > 1:
            raise RuntimeError(f"every way must give the same loss, got {losses}")
        clips = len(in_memory.indices) * len(build(plain, "objective").views)
    return [row(OBJECTIVES[objective], name, clips, seconds) for name in ORDER]


def row(objective: str, name: str, clips: int, seconds: dict[str, list[float]]) -> list[str]:
    """Return a row of the table."""
    ratios = [own / step for own, step in zip(seconds[name], seconds[STEP], strict=True)]
    spread = "" if name == STEP else f"{min(ratios):.2f} to {max(ratios):.2f}"
    return [objective, name, f"{clips / median(seconds[name]):.0f}", f"{median(ratios):.2f}", spread]


def reading(root: Path, repeats: int) -> list[list[str]]:
    """Return the rows of reading alone: 8 frames of each video."""
    seconds: dict[str, list[float]] = {"files": [], "cache": []}
    with TemporaryDirectory() as folder:
        first = examples(settings(root, "speed", Path(folder)))
        passes: Sequence[tuple[str, Path | None]] = (("files", None), ("cache", Path(folder)))
        read(first)
        for _ in range(repeats):
            for name, cache in passes:
                own = examples(settings(root, "speed", cache))
                begun = time.process_time()
                read(own)
                seconds[name].append(time.process_time() - begun)
        count = len(first.indices)
    return [["reading alone, 8 frames", name, f"{count / median(each):.0f}", "", ""] for name, each in seconds.items()]


def read(own: loop.Examples) -> None:
    """Take 8 frames of each video."""
    for index in own.indices:
        own.dataset.read(int(index))[:8].copy()


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DIR", help="the folder with metadata.csv and the videos")
    parser.add_argument("--repeats", type=int, default=15, help="default 15")
    parser.add_argument("--batch-size", type=int, default=16, help="default 16")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    root = chosen.data.resolve()
    rows = reading(root, chosen.repeats)
    for objective in OBJECTIVES:
        rows += measure(root, objective, chosen.batch_size, chosen.repeats)
    note = (
        f"Videos of 64 x 64, clips of 32 x 32, batches of {chosen.batch_size}; medians of {chosen.repeats} repeats that"
        " take turns, of the process's own time, with the files in the system's memory. The ratio is to the step alone;"
        " all epochs of an objective end with the same loss to the last bit."
    )
    header = ["", "from", "clips/s", "ratio to the step", "least to greatest"]
    report("video_reading", "Clips from files, from the cache and out of a step", header, rows, [note],
           private=[str(chosen.data)])  # fmt: skip


if __name__ == "__main__":
    main()
