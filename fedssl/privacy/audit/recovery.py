"""Images of a client from the gradient of one step of it (Geiping et al. 2020), with and without the run's mechanism.

"Inverting Gradients - How easy is it to break privacy in federated learning?". The attacker knows the model, the loss,
the labels, and how each view was drawn. What fails is this attack at this strength; that tells of no guarantee.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedssl.checks import at_least, within
from fedssl.data.dataset import Dataset
from fedssl.errors import ConfigError
from fedssl.models import bundle
from fedssl.objectives.objective import Role
from fedssl.privacy.audit.inversion import identification_rate, invert, psnr
from fedssl.privacy.audit.released import PLAIN, OneStep, gradients
from fedssl.training.augment import MAX_BYTE, Augmentation
from fedssl.training.loop import Examples, Stream, make_batch
from fedssl.workspace import Workspace

_MOST = 8  # of the paper's batches that come back well
_CLIENT = 0
_SMOOTHNESS = 1e-2  # of photographs and digits, whose neighbouring pixels are alike
_OTHERS = 1000  # examples of the client, at most, that an image could be mistaken for


@dataclass(frozen=True, slots=True)
class Recovered:
    """What came back from one gradient.

    Attributes:
        images: `[n, channels, height, width]` in [0, 1], matched to the originals.
        psnr: Peak signal-to-noise ratio of all of them, in decibels.
        identified: Share of the originals that are the nearest example to one of the images.
    """

    images: NDArray[np.float32]
    psnr: float
    identified: float

    @property
    def succeeded(self) -> bool:
        """Whether an attack of this strength identifies more than half of the originals."""
        return self.identified > 0.5


@dataclass(frozen=True, slots=True)
class Recovery:
    """What came back from the gradients of a step.

    Attributes:
        originals: `[n, channels, height, width]` in [0, 1], the first of client 0.
        num_others: Other examples of the client that an image could be mistaken for.
        found: By how the gradient came out, see `fedssl.privacy.audit.released`.
    """

    originals: NDArray[np.float32]
    num_others: int
    found: Mapping[str, Recovered]

    def to_dict(self) -> dict[str, object]:
        """Return the numbers as JSON values."""
        found = {
            name: {"psnr": each.psnr, "identified": each.identified, "succeeded": each.succeeded}
            for name, each in self.found.items()
        }
        return {"examples": len(self.originals), "others": self.num_others, "model": "initial", "gradients": found}


def recover(workspace: Workspace, number: int, seed: int = 0, steps: int = 1000) -> Recovery:
    """Search for the first images of client 0 by the gradient of one step at the model that the run begins with.

    Args:
        workspace: Of the run.
        number: Images of the step, at most 8.
        seed: Root of what the audit draws.
        steps: Of each search.

    Raises:
        ConfigError: The examples are no images of one size, the client has too few, or the loss cannot be searched.
        ValueError: The number is out of range.
    """
    own, objective = workspace.indices(_CLIENT), workspace.objective
    within(1, _MOST, invert=number)
    at_least(objective.min_batch, **{"invert with this objective": number})
    if number > len(own):
        raise ConfigError(f"invert={number}: must be at most the {len(own)} examples of client {_CLIENT}")
    dataset = workspace.examples_of(_CLIENT)
    originals, *others = _images(dataset, own[: number + _OTHERS]).split([number, len(own[number:][:_OTHERS])])
    noted = _Noted(workspace.augmentation)
    examples = Examples(dataset, own[:number], noted, workspace.labels(_CLIENT)[:number])
    step = _step(workspace, examples)
    drawn = tuple(noted.drawn)

    def loss(images: Tensor) -> Tensor:
        views = tuple(noted.augmentation(MAX_BYTE * images.unsqueeze(2), *how) for how in drawn)
        return objective.step(step.model, replace(step.batch, views=views)).loss

    found = {}
    try:
        observed = gradients(workspace, step, seed)
        parameters = [dict(step.model.named_parameters())[name] for name in observed[PLAIN]]
        for how, named in observed.items():
            what = (loss, parameters, list(named.values()), tuple(originals.shape))
            images = invert(*what, steps=steps, smoothness=_SMOOTHNESS, seed=seed)
            found[how] = _compared(images, originals, others[0])
    except RuntimeError as error:
        raise ConfigError(f"invert: gradients of {type(objective).__name__} cannot be searched, {error}") from error
    return Recovery(originals.numpy(), len(others[0]), found)


class _Noted:
    """An augmentation that keeps how each view was drawn, so that the same can be drawn of other pixels."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation
        self.num_uniforms = augmentation.num_uniforms
        self.drawn: list[tuple[NDArray[np.float64], Role, int]] = []

    def __call__(self, clips: Tensor, uniforms: NDArray[np.float64], role: Role, ordinal: int) -> Tensor:
        self.drawn.append((uniforms, role, ordinal))
        return self.augmentation(clips, uniforms, role, ordinal)


def _step(workspace: Workspace, examples: Examples) -> OneStep:
    """Return the step, on the CPU: there the gradient of a crop is the same each time."""
    bundle.load(workspace.model, workspace.initial)
    model = deepcopy(workspace.model).cpu().train()
    workspace.objective.begin_round(model, first=True)
    stream, places = Stream(workspace.config.seed, _CLIENT, 1), np.arange(len(examples.indices))
    batch = make_batch(workspace.objective, examples, places, stream, 0, torch.device("cpu"))
    return OneStep(model, examples, stream, batch)


def _images(dataset: Dataset, indices: NDArray[np.int64]) -> Tensor:
    """Return images `[n, channels, height, width]` in [0, 1]."""
    clips = [dataset.read(int(index)) for index in indices]
    if {len(clip) for clip in clips} != {1}:
        raise ConfigError(f"invert: needs images, client {_CLIENT} has videos")
    if len({clip.shape for clip in clips}) > 1:
        raise ConfigError(f"invert: needs images of one size, client {_CLIENT} has several")
    return torch.from_numpy(np.concatenate(clips)).permute(0, 3, 1, 2).float() / MAX_BYTE


def _compared(images: Tensor, originals: Tensor, others: Tensor) -> Recovered:
    """Match images to originals, whose order no gradient tells, so that their distance is least, and compare."""
    from scipy.optimize import linear_sum_assignment

    distances = torch.cdist(originals.flatten(1), images.flatten(1)).square()
    _, places = linear_sum_assignment(distances.numpy())
    matched = images[torch.from_numpy(places)]
    rate = identification_rate(matched, originals, others)
    return Recovered(matched.numpy(), psnr(matched, originals), rate)
