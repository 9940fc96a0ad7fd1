"""The rounds of a finished run once more: the global models that it kept, and what a client makes of one of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_type_hints

import numpy as np
from numpy.typing import NDArray

from fedssl import checkpoint
from fedssl.arrays import Arrays
from fedssl.errors import ConfigError
from fedssl.models import bundle
from fedssl.privacy.clipping import change, noised_names
from fedssl.training.loop import Examples
from fedssl.wire import TrainTask
from fedssl.workspace import Workspace


def guessed(folder: Path) -> tuple[int, ...]:
    """Return the rounds with a model before and after them; ConfigError where there is none."""
    kept = checkpoint.rounds(folder)
    found = tuple(number for number in kept if number - 1 in (0, *kept))
    if not found:
        wanted = "has no models of two rounds that follow each other"
        raise ConfigError(f"{folder}: {wanted}; run with checkpoint.every=1 checkpoint.keep=ROUNDS")
    return found


def moves(workspace: Workspace, folder: Path) -> Iterator[tuple[int, Arrays, Arrays, Sequence[int]]]:
    """Yield each round that can be guessed with the models before and after it, and its cohort."""
    last = 0
    before: Arrays | None = None
    for number in checkpoint.rounds(folder):
        saved = checkpoint.load(folder, number)
        if before is None:
            before = {name: workspace.initial[name] for name in saved.arrays}
        if number == last + 1:
            yield number, before, saved.arrays, saved.records[-1].clients
        last, before = number, saved.arrays


def vector(workspace: Workspace, before: Arrays, after: Arrays) -> NDArray[np.float64]:
    """Return how far the trained tensors moved, `[dim]`."""
    names = noised_names(before, bundle.buffer_names(workspace.model))
    return np.concatenate([values.ravel() for values in change(after, before, names).values()])


def trained(workspace: Workspace, arrays: Arrays, number: int, client: int) -> Arrays:
    """Return the model after a client's training in a round, as without a mechanism and by what came alone.

    Args:
        workspace: Of the run; its model is trained.
        arrays: The global model that the round began with.
        number: Of the round.
        client: Which is taken for new: what it remembers is not here.

    Raises:
        ConfigError: The procedure needs more than the global model, or training fails.
    """
    config = workspace.config
    task = TrainTask(number, config.rounds, config.seed, arrays)
    procedure = workspace.procedure
    # what a client's work is lies with the procedures, which this package does not import
    work = get_type_hints(procedure.train)["work"]
    dataset, indices = workspace.examples_of(client), workspace.indices(client)
    labels, truth = workspace.labels(client), dataset.labels[indices]
    examples = Examples(dataset, indices, workspace.augmentation, labels, truth)
    try:
        bundle.load(workspace.model, procedure.begin(workspace.initial, None, task))
        procedure.train(work(workspace.model, workspace.objective, examples, task, client))
    except (ValueError, KeyError, FloatingPointError) as error:
        what = f"client {client} cannot be trained again from the global model of round {number - 1} alone"
        raise ConfigError(f"client={type(procedure).__name__}: {what}, {error}") from error
    return bundle.arrays(workspace.model, None, copy=False)
