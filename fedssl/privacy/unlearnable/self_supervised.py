"""Who learns from protected images without labels: a linear probe tells what the encoder knows afterwards."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.config import RunConfig, build
from fedssl.data.arrays import ArrayDataset
from fedssl.data.split import by_label
from fedssl.evaluation.features import evaluating
from fedssl.evaluation.linear_probe import LinearProbe
from fedssl.models import bundle
from fedssl.objectives.objective import Population
from fedssl.privacy.unlearnable.defences.defence import Defence
from fedssl.privacy.unlearnable.defences.projection import Projection
from fedssl.privacy.unlearnable.surrogate import to_pixels
from fedssl.privacy.unlearnable.victim import Score
from fedssl.seeding import generator
from fedssl.training.loop import Examples, Schedule, Stream, fit

_POOL = 0.5  # of the images that are scored: the probe learns from it, the others are asked about
_ENCODED = 500  # images at once


@dataclass(frozen=True, slots=True)
class SelfSupervised:
    """A victim that has all images and trains an encoder by an objective without labels.

    Attributes:
        config: Its objective, model, augmentation, optimizer and batch size are taken.
        epochs: Passes over the images; 0 leaves the encoder untrained.
        device: That it trains on.

    Raises:
        ValueError: The number of epochs is negative.
    """

    config: RunConfig
    epochs: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least(0, epochs=self.epochs)

    def __call__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int, defence: Defence, seed: int
    ) -> Score:
        """Return the accuracy of a linear probe on one half of the images, learned from the other; see `Victim`.

        Args:
            images: `[n, height, width, channels]` uint8.
            labels: Not read.
            num_classes: Number of classes.
            defence: What is done against protection, which must change images alone.
            seed: Root of every random stream.

        Raises:
            ValueError: The defence needs labels or a classifier, or there are fewer images than the objective takes.
            FloatingPointError: The loss stopped being a finite number.
        """
        if not _changes_images_alone(defence):
            raise ValueError(f"defence must change images alone without labels, got {type(defence).__name__}")
        nobody = np.zeros(len(images), np.int64)
        changed = defence.change(images, nobody, seed)(images)
        dataset = ArrayDataset(nobody, ("",), ("",) * len(images), changed[:, None])
        objective, client = build(self.config, "objective"), build(self.config, "client")
        population = Population(len(images), num_classes)
        model = bundle.build_bundle(lambda: build(self.config, "model"), objective, seed, population)
        model.to(self.device)
        examples = Examples(dataset, np.arange(len(images)), build(self.config, "augmentation"))
        schedule = Schedule(self.epochs, client.batch_size, 1.0, client.max_grad_norm)
        objective.begin_round(model, first=True)
        if self.epochs:
            fit(model, objective, examples, client.optimizer, schedule, Stream(seed, 0, 1))
        encoder, device = model[bundle.BACKBONE], torch.device(self.device)

        def score(some: NDArray[np.uint8], truth: NDArray[np.int64]) -> float:
            with evaluating(encoder), torch.no_grad():
                parts = [to_pixels(some[first : first + _ENCODED], device) for first in range(0, len(some), _ENCODED)]
                features = torch.cat([encoder(part[:, :, None]) for part in parts])
            answers = torch.from_numpy(truth).to(device)
            halves = by_label(truth, _POOL, generator(seed, "victim", "probe"))
            pool, asked = (torch.from_numpy(half).to(device) for half in halves)
            probe = LinearProbe().fit(features[pool], answers[pool], num_classes, seed)
            return probe.accuracy(features[asked], answers[asked])

        return score


def _changes_images_alone(defence: Defence) -> bool:
    kind = type(defence)
    return kind.batch is Defence.batch and kind.attack is Defence.attack and kind is not Projection
