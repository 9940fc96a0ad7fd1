"""What protection takes from a learner, and what its best defence gives back: CIFAR-10, one core a victim.

    python -m benchmarks.unlearnable DIR   # the folder with train.npz and test.npz; an hour and a quarter of one core
    python -m benchmarks.unlearnable DIR --without-labels   # an hour of one core

Owners know the ten classes at most, not what a learner wants to tell apart. Victims train on protected images, with
the ten classes, with two superclasses, or with clusters for labels, and are scored on clean test images. Those without
labels train the same encoder whatever is asked afterwards, here by a linear probe of the ten classes.
Noise and results that are there are read, not made again: the command can be broken off and given again.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.experiments import KEEP_MEMORY, ROOT, spread
from benchmarks.measure import report
from fedssl.compose import load
from fedssl.data.dataset import Splits
from fedssl.data.packed import packed
from fedssl.data.pixels import thumbnails
from fedssl.privacy.unlearnable.clusters import UnlearnableClusters
from fedssl.privacy.unlearnable.contrastive import ContrastivePoisoning
from fedssl.privacy.unlearnable.defences.adversarial import Adversarial
from fedssl.privacy.unlearnable.defences.defence import Defence
from fedssl.privacy.unlearnable.defences.names import NAMES, NONE, defence
from fedssl.privacy.unlearnable.defences.strong import UEraser
from fedssl.privacy.unlearnable.error_minimising import ErrorMinimising
from fedssl.privacy.unlearnable.label_spaces import LabelSpace, clusters, superclasses
from fedssl.privacy.unlearnable.measure import CLEAN, Cell, Row, Study, measure, rows
from fedssl.privacy.unlearnable.noise import Noise, read_noise, write_noise
from fedssl.privacy.unlearnable.protector import Owned, Protector
from fedssl.privacy.unlearnable.random_noise import RandomNoise
from fedssl.privacy.unlearnable.self_supervised import SelfSupervised
from fedssl.privacy.unlearnable.victim import Recipe, Supervised, Victim

PROTECTIONS: Mapping[str, Protector] = {
    "random, a pattern an image": RandomNoise(per="sample"),
    "random, a pattern a class": RandomNoise(per="class"),
    "error-minimising, a class": ErrorMinimising(per="class", stem_stride=2),
    "error-minimising, an image": ErrorMinimising(
        per="sample", stem_stride=2, inner_steps=5, step=0.2, subset=1.0, stop_error=0.01, max_rounds=20
    ),
    "unlearnable clusters": UnlearnableClusters(
        num_clusters=10, loss="l2", images="own", epochs=20, batch_size=64, learning_rate=3e-3, width=16, blocks=2
    ),
    "contrastive, a cluster": ContrastivePoisoning(
        framework="simclr", per="cluster", rounds=10, batch_size=128, learning_rate=0.1, stem_stride=2
    ),
}
SUPERCLASSES = (
    ("bird", "cat", "deer", "dog", "frog", "horse"),
    ("airplane", "automobile", "ship", "truck"),
)
SMALL: Mapping[str, Defence] = {"ueraser": UEraser(draws=3), "adversarial": Adversarial(steps=2, step=5)}
"""Defences that are made smaller than published, for the sake of time."""
DEFENCES = ["shift_flip", "jpeg10", "grey", "ueraser", "adversarial"]
AGAINST_BLIND = [
    "random, a pattern an image",
    "error-minimising, a class",
    "unlearnable clusters",
    "contrastive, a cluster",
]
"""Protections that learners without labels are measured with."""
AUGMENTED = "Only defences augment; published victims shift and flip images as in the column shift_flip."
NUM_CLUSTERS, CLUSTER_SEED = 5, 1000  # neither is what owners cluster by


def spaces(splits: Splits) -> list[LabelSpace]:
    """Return what victims want to tell apart."""
    train, test = splits.train, splits.test
    classes = LabelSpace(f"{len(train.classes)} classes", len(train.classes), train.labels, test.labels)
    return [
        classes,
        superclasses(classes, train.classes, SUPERCLASSES),
        clusters(thumbnails(train), thumbnails(test), NUM_CLUSTERS, CLUSTER_SEED),
    ]


def protect(protector: Protector, owned: Owned, folder: Path) -> NDArray[np.uint8]:
    """Return the protected images; their noise is made unless it is in the folder."""
    name = hashlib.sha256(repr((protector, owned.seed)).encode() + owned.images.tobytes()).hexdigest()[:16]
    path = folder / f"{name}.npz"
    if path.exists():
        noise: Noise = read_noise(path)
    else:
        noise = protector.fit(owned)
        write_noise(path, noise)
    return np.concatenate([noise.apply(owned.images[[place]], place) for place in range(len(owned.images))])


def without_labels(epochs: int, device: str) -> dict[str, Victim]:
    """Return victims of the configuration of self-supervision on images."""
    victims: dict[str, Victim] = {}
    for name in ("simclr", "byol"):
        config = load(["experiment=ssl_images", "data.root=unused", f"objective={name}"])
        victims[name] = SelfSupervised(config, epochs, device)
    return victims


def table(found: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
    """Return a line of the table for each row."""
    return [
        [
            row.victim,
            row.protection,
            "" if row.protection == CLEAN else f"{row.fraction:.0%}",
            row.space,
            f"{row.chance:.3f}",
            "" if np.isinf(row.psnr) else f"{row.psnr:.1f}",
            *(_mean(row.accuracies[name]) for name in names),
            f"{row.drop:+.3f}",
            "" if np.isnan(row.gain) else f"{row.gain:+.3f}",
            f"{row.best} {np.mean(row.accuracies[row.best]):.3f}",
        ]
        for row in found
    ]


def _mean(accuracies: Sequence[float]) -> str:
    return spread(accuracies) if len(accuracies) > 1 else f"{accuracies[0]:.3f}"


def _say(what: str, done: int, total: int) -> None:
    sys.stderr.write(f"{done} of {total}: {what}\n")


def main() -> None:
    """Make the noise and train the victims that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with train.npz and test.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of victims without defence")
    parser.add_argument("--defended-seeds", type=int, nargs="+", default=[0, 1, 2], help="of victims with a defence")
    parser.add_argument("--without-labels", action="store_true", help="victims that do not read labels")
    parser.add_argument("--protections", nargs="+", choices=PROTECTIONS, help="some of them")
    parser.add_argument("--defences", nargs="+", choices=NAMES[1:], help="some of them")
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0], help="shares of the images protected")
    parser.add_argument("--num-train", type=int, default=2400)
    parser.add_argument("--num-test", type=int, default=2000)
    parser.add_argument("--epochs", type=int, help="of victims; 10, without labels 20")
    parser.add_argument("--model", default="small_resnet", help="of victims with labels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="victims at once")
    parser.add_argument("--name", help="of the table")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "unlearnable", help="where results are kept")
    chosen = parser.parse_args()
    os.environ.update(KEEP_MEMORY)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    chosen.runs.mkdir(parents=True, exist_ok=True)
    splits = packed(str(chosen.data), num_train=chosen.num_train, num_test=chosen.num_test)
    images, test = splits.train.examples[:, 0], splits.test.examples[:, 0]
    owned = Owned(images, splits.train.labels, len(splits.train.classes), 0, torch.device(chosen.device), _say)
    blind, asked = chosen.without_labels, spaces(splits)
    epochs = chosen.epochs or (20 if blind else 10)
    supervised = Supervised(Recipe(chosen.model, epochs), chosen.device)
    protections = chosen.protections or (AGAINST_BLIND if blind else PROTECTIONS)
    defences = chosen.defences or (["jpeg10"] if blind else DEFENCES)
    study = Study(
        train=images,
        test=test,
        protected={name: protect(PROTECTIONS[name], owned, chosen.runs) for name in protections},
        spaces=asked[:1] if blind else asked,
        victims=without_labels(epochs, chosen.device) if blind else {chosen.model: supervised},
        defences={name: SMALL.get(name) or defence(name) for name in (NONE, *defences)},
    )
    cells: list[Cell] = [
        *study.cells(chosen.seeds, [NONE], chosen.fractions),
        *study.cells(chosen.defended_seeds, defences, chosen.fractions),
    ]
    results = measure(study, cells, chosen.runs / "cells.jsonl", chosen.processes, _say)
    columns = ["learner", "protection", "of the images", "labels", "chance", "PSNR, dB"]
    header = [*columns, *study.defences, "drop", "gain", "best"]
    notes = [
        f"Accuracy on {len(test) // 2 if blind else len(test)} clean test images after {epochs} epochs of "
        f"{len(images)} training images. Mean over seeds {chosen.seeds}, ± is the standard deviation over them; with a "
        f"defence, seeds {chosen.defended_seeds}. {_untrained(study, chosen.seeds) if blind else AUGMENTED} Chance "
        "is the most frequent class. The drop is what protection takes from a victim without defence. The gain is what "
        "protected images add to the clean part alone. Protection is empirical, and no better than its best defence; "
        "that one is chosen by the numbers shown, which flatters it.",
        "",
        *(f"- {name}: `{PROTECTIONS[name]}`" for name in protections),
        *(f"- {name}: `{each}`" for name, each in study.defences.items() if name != NONE),
    ]
    name = chosen.name or ("unlearnable_without_labels" if blind else "unlearnable")
    title = f"Protected images: what a learner {'without' if blind else 'with'} labels still learns"
    lines = table(rows(study, results), tuple(study.defences))
    report(name, title, header, lines, notes, private=[str(chosen.data), str(chosen.runs)])


def _untrained(study: Study, seeds: Sequence[int]) -> str:
    """Say what a linear probe finds in the encoder that learners without labels begin with."""
    space, defence = study.spaces[0], study.defences[NONE]
    (first, *_) = without_labels(0, "cpu").values()
    learners = [first(study.train, space.train, space.num_classes, defence, seed) for seed in seeds]
    scores = [score(study.test, space.test) for score in learners]
    return f"A linear probe learns from the other half of the test images; of the untrained encoder {_mean(scores)}."


if __name__ == "__main__":
    main()
