"""The gradient of one step of a client, as it is and as the run's mechanism lets it out."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from fedssl.arrays import Arrays
from fedssl.config import build
from fedssl.errors import ConfigError
from fedssl.models import bundle
from fedssl.objectives.objective import Batch
from fedssl.privacy.example import Sampled
from fedssl.privacy.mechanism import noised
from fedssl.privacy.noise import NoiseKey
from fedssl.seeding import derive
from fedssl.training.loop import Examples, Schedule, Stream, fit
from fedssl.training.private_loop import PrivateSteps, fit_privately
from fedssl.workspace import Workspace

PLAIN = "as it is"
Named = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class OneStep:
    """A step of a client on all of some examples.

    Attributes:
        model: In training mode; it is left as it is.
        examples: Those of the step.
        stream: Names what is drawn.
        batch: What the step sees.
    """

    model: nn.ModuleDict
    examples: Examples
    stream: Stream
    batch: Batch


def gradients(workspace: Workspace, step: OneStep, seed: int) -> dict[str, Named]:
    """Return gradients by the names of parameters that are trained and exchanged, by how they come out.

    The first is "as it is". The other, where the run has a mechanism, is the noised sum of clipped gradients of
    mechanisms that noise steps, with every unit of the step in it; of the others it is the change of the client's own
    optimizer, which is a gradient where that is plain SGD, clipped and noised as one.

    Args:
        workspace: Of the run.
        step: The step.
        seed: Of the noise.

    Raises:
        ConfigError: No parameter is both trained and exchanged.
    """
    sent = workspace.shared(build(workspace.config, "strategy").share)
    parameters = {name: each for name, each in step.model.named_parameters() if each.requires_grad and name in sent}
    if not parameters:
        raise ConfigError("invert: nothing that is trained is exchanged, so no gradient is seen")
    loss = workspace.objective.step(step.model, step.batch).loss
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    plain = {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}
    mechanism = workspace.mechanism
    if mechanism is None:
        return {PLAIN: plain}
    model, size = deepcopy(step.model), len(step.examples.indices)
    key = NoiseKey.from_seed(derive(seed, "audit", "released"))
    before = _shared(model, sent)
    if isinstance(mechanism, Sampled):
        private = PrivateSteps(replace(mechanism, sampling_rate=1.0), workspace.terms, key)
        unit = partial(torch.optim.SGD, lr=1.0)  # the step is the gradient
        fit_privately(
            model, workspace.objective, step.examples, unit, Schedule(1, size, 1.0, 0.0), step.stream, private
        )
        after = _shared(model, sent)
    else:
        procedure = workspace.procedure
        how = (procedure.optimizer, Schedule(1, size, 1.0, procedure.max_grad_norm), step.stream)
        fit(model, workspace.objective, step.examples, *how)
        noise, buffers = workspace.terms.release.noise_std, bundle.buffer_names(model)
        after = noised(before, _shared(model, sent), buffers, mechanism.clip, noise, key, ("released",))
    released = {name: torch.from_numpy(before[name] - after[name]) for name in plain}
    return {PLAIN: plain, f"privacy={mechanism.name}": released}


def _shared(model: nn.ModuleDict, sent: Arrays) -> Arrays:
    return {name: array for name, array in bundle.arrays(model, None).items() if name in sent}
