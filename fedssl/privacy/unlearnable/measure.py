"""How much protection takes from a learner: accuracy on clean test images, beside what the best defence gives back."""

import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedssl.checks import above, at_least, within
from fedssl.privacy.unlearnable.defences.defence import Defence
from fedssl.privacy.unlearnable.defences.names import NONE
from fedssl.privacy.unlearnable.label_spaces import LabelSpace
from fedssl.privacy.unlearnable.noise import LEVELS
from fedssl.privacy.unlearnable.protector import Say, silent
from fedssl.privacy.unlearnable.victim import Victim
from fedssl.seeding import generator

CLEAN = "clean"
REST = "the clean part alone"


@dataclass(frozen=True, slots=True)
class Cell:
    """What one victim is trained on; equal cells of one study have equal results.

    Attributes:
        protection: Name of the protection, `CLEAN`, or `REST`: the images that are not protected, and no others.
        fraction: Share of the training images that is protected, in (0, 1]; of `CLEAN` it is 1.
        space: Name of the label space.
        victim: Name of the victim.
        defence: Name of the defence.
        seed: Of the victim, and of which images are protected.
    """

    protection: str
    fraction: float
    space: str
    victim: str
    defence: str
    seed: int


@dataclass(frozen=True, slots=True)
class Study:
    """What is measured.

    Attributes:
        train: `[n, height, width, channels]` uint8, clean.
        test: `[m, height, width, channels]` uint8, clean.
        protected: The training images by the name of their protection, each as `train`.
        spaces: Label spaces.
        victims: Victims by name.
        defences: Defences by name; "none" must be among them.

    Raises:
        ValueError: "none" is missing, or images and labels do not fit together.
    """

    train: NDArray[np.uint8]
    test: NDArray[np.uint8]
    protected: Mapping[str, NDArray[np.uint8]]
    spaces: Sequence[LabelSpace]
    victims: Mapping[str, Victim]
    defences: Mapping[str, Defence]

    def __post_init__(self) -> None:
        if NONE not in self.defences:
            raise ValueError(f"defences must have {NONE}, got {', '.join(self.defences)}")
        for name, images in self.protected.items():
            if images.shape != self.train.shape:
                raise ValueError(f"{name} must have the shape {self.train.shape} of train, got {images.shape}")
        for space in self.spaces:
            if (len(space.train), len(space.test)) != (len(self.train), len(self.test)):
                want = f"{len(self.train)} and {len(self.test)}"
                raise ValueError(f"labels of {space.name} must be {want}, got {len(space.train)} and {len(space.test)}")

    def cells(self, seeds: Sequence[int], defences: Sequence[str], fractions: Sequence[float] = (1.0,)) -> list[Cell]:
        """Return the cells of every protection, and those that they are compared with.

        Args:
            seeds: Of victims.
            defences: Names of defences.
            fractions: Shares of the training images that are protected.

        Raises:
            ValueError: A fraction is not in (0, 1].
        """
        for fraction in fractions:
            above(0, fraction=fraction)
            within(0, 1, fraction=fraction)
        data = [(CLEAN, 1.0), *((REST, fraction) for fraction in fractions if fraction < 1)]
        data += [(name, fraction) for name in self.protected for fraction in fractions]
        return [
            Cell(*which, space.name, victim, defence, seed)
            for which in data
            for space in self.spaces
            for victim in self.victims
            for defence in defences
            for seed in seeds
        ]

    def job(self, cell: Cell) -> "Job":
        """Return all that a cell's result is a function of."""
        space = next(space for space in self.spaces if space.name == cell.space)
        images, labels = self.train, space.train
        if cell.protection != CLEAN:
            number = round(cell.fraction * len(images))
            chosen = generator(cell.seed, "measure", "protected").permutation(len(images)) < number
            if cell.protection == REST:
                images, labels = images[~chosen], labels[~chosen]
            else:
                images = np.where(chosen[:, None, None, None], self.protected[cell.protection], images)
        victim, defence = self.victims[cell.victim], self.defences[cell.defence]
        return Job(victim, images, labels, space.num_classes, defence, cell.seed, self.test, space.test)


@dataclass(frozen=True, slots=True)
class Job:
    """A victim with what it learns from, and what it is scored on; see `Victim` and `LabelSpace`."""

    victim: Victim
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    num_classes: int
    defence: Defence
    seed: int
    test: NDArray[np.uint8]
    truth: NDArray[np.int64]

    def key(self) -> str:
        """Return a name that no other job has."""
        digest = hashlib.sha256(repr((self.victim, self.num_classes, self.defence, self.seed)).encode())
        for array in (self.images, self.labels, self.test, self.truth):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def accuracy(self) -> float:
        """Train and return the accuracy on the clean test images."""
        score = self.victim(self.images, self.labels, self.num_classes, self.defence, self.seed)
        return score(self.test, self.truth)


def measure(
    study: Study, cells: Sequence[Cell], path: Path, processes: int = 1, say: Say = silent
) -> dict[Cell, float]:
    """Return the accuracy of each cell.

    Args:
        study: What they are cells of.
        cells: Of `Study.cells`; those that differ in their names alone are trained once.
        path: A file of JSON lines. What it holds of the same victims, data and seeds is read, not repeated, and every
            result is added as soon as it is there.
        processes: Victims at once; several are processes of one core each, a single one is trained in this process.
        say: Called after each.
    """
    at_least(1, processes=processes)
    keys = {cell: study.job(cell).key() for cell in cells}
    known = _read(path)
    missing = {key: cell for cell, key in keys.items() if key not in known}
    for done, (key, result) in enumerate(_results(study, missing, processes), 1):
        known[key] = result
        cell = missing[key]
        names = {name: getattr(cell, name) for name in Cell.__slots__}
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"key": key, **names, "accuracy": result}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        say(f"{cell.protection}, {cell.space}, {cell.defence}", done, len(missing))
    return {cell: known[key] for cell, key in keys.items()}


def _read(path: Path) -> dict[str, float]:
    """Return the results of a file; its last line may have been broken off."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    return {record["key"]: record["accuracy"] for record in map(json.loads, whole)}


def _results(study: Study, missing: Mapping[str, Cell], processes: int) -> Iterator[tuple[str, float]]:
    """Yield each result as soon as it is there."""
    if processes == 1:
        for key, cell in missing.items():
            yield key, study.job(cell).accuracy()
        return
    waiting = iter(missing.items())
    running: dict[Future[float], str] = {}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _one_core) as pool:
        while True:
            # a job takes all its images along: few at a time
            for key, cell in islice(waiting, 2 * processes - len(running)):
                running[pool.submit(study.job(cell).accuracy)] = key
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _one_core() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


@dataclass(frozen=True, slots=True)
class Row:
    """What a protection does to one label space and one victim.

    Attributes:
        protection: See `Cell`.
        fraction: See `Cell`.
        space: See `Cell`.
        victim: See `Cell`.
        psnr: Of the protected images, in decibels; infinite where nothing is changed.
        chance: See `LabelSpace.chance`.
        accuracies: By defence, one a seed.
        unprotected: Accuracies without protection or defence, one a seed.
        rest: Those of training on the clean part alone, one a seed; empty where all is protected.
    """

    protection: str
    fraction: float
    space: str
    victim: str
    psnr: float
    chance: float
    accuracies: Mapping[str, Sequence[float]]
    unprotected: Sequence[float]
    rest: Sequence[float]

    @property
    def drop(self) -> float:
        """Mean accuracy that protection takes from a victim without defence."""
        return float(np.mean(self.unprotected) - np.mean(self.accuracies[NONE]))

    @property
    def gain(self) -> float:
        """Mean accuracy that protected images add, without defence, to those of the clean part alone.

        Not a number where all is protected.
        """
        return float(np.mean(self.accuracies[NONE]) - np.mean(self.rest)) if self.rest else math.nan

    @property
    def best(self) -> str:
        """The defence of the largest mean accuracy, "none" among them."""
        return max(self.accuracies, key=lambda name: float(np.mean(self.accuracies[name])))


def rows(study: Study, results: Mapping[Cell, float]) -> list[Row]:
    """Return a row for each protection, fraction, label space and victim, in the order of the results.

    Args:
        study: That was measured.
        results: Of `measure`, with the cells of `CLEAN`.
    """
    chances = {space.name: space.chance for space in study.spaces}
    groups: dict[tuple[str, float, str, str], dict[str, list[float]]] = {}
    for cell, accuracy in results.items():
        group = groups.setdefault((cell.protection, cell.fraction, cell.space, cell.victim), {})
        group.setdefault(cell.defence, []).append(accuracy)
    return [
        Row(
            protection,
            fraction,
            space,
            victim,
            psnr=psnr(study.train, study.protected.get(protection, study.train)),
            chance=chances[space],
            accuracies=accuracies,
            unprotected=groups[CLEAN, 1.0, space, victim][NONE],
            rest=groups[REST, fraction, space, victim][NONE] if fraction < 1 else (),
        )
        for (protection, fraction, space, victim), accuracies in groups.items()
    ]


def psnr(clean: NDArray[np.uint8], changed: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of all pixels together in decibels: the largest of 20 log10(255 / rms)."""
    error = float(np.square(clean.astype(np.float32) - changed).mean(dtype=np.float64))
    return 10 * math.log10(LEVELS**2 / error) if error else math.inf
