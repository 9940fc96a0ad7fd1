"""A server that holds labelled examples of its own learns from them after each round (SemiFL, Diao et al. 2022)."""

import copy
from collections.abc import Callable

from torch import nn

from fedssl.arrays import Arrays
from fedssl.config import build
from fedssl.data.deficiency_at_server import AtServer
from fedssl.errors import ConfigError, RunError
from fedssl.models import bundle
from fedssl.training.loop import Examples, Schedule, Stream, fit
from fedssl.wire import TrainTask
from fedssl.workspace import Workspace

_SERVER = -1


def teacher(workspace: Workspace) -> Callable[[Arrays, int], Arrays] | None:
    """Return what trains the merged model on the server's examples; None where it holds none.

    The objective, the augmentation, the optimizer and the batches are those of the clients, and so is what is trained:
    to the server's private tensors a round is always the first.

    Raises:
        ConfigError: The server holds too few examples for the objective.
    """
    deficiency = workspace.deficiency
    if not isinstance(deficiency, AtServer):
        return None
    config, train, indices = workspace.config, workspace.splits.train, workspace.known.server
    client, labels = build(config, "client"), train.labels[indices]
    examples = Examples(train, indices, build(config, "augmentation"), labels, labels)
    smallest = workspace.objective.min_batch
    if min(len(indices), client.batch_size) < smallest:
        least = f"must be at least {smallest}, the objective's smallest batch"
        raise ConfigError(f"labels.num_labels={len(indices)}: {least}")
    model: nn.ModuleDict = copy.deepcopy(workspace.model)  # the other may be evaluated at the same time

    def teach(merged: Arrays, round_number: int) -> Arrays:
        bundle.load(model, {**workspace.initial, **merged})
        workspace.objective.begin_round(model, first=True)
        progress = ((round_number - 1) / config.rounds, round_number / config.rounds)
        factor = client.rate_factor(TrainTask(round_number, config.rounds, config.seed, merged))
        limits = (factor, client.max_grad_norm, progress, client.precision)
        schedule = Schedule(deficiency.epochs, client.batch_size, *limits)
        stream = Stream(config.seed, _SERVER, round_number)
        try:
            fit(model, workspace.objective, examples, client.optimizer, schedule, stream)
        except (FloatingPointError, ValueError) as error:
            raise RunError(f"round {round_number}, server: {error}") from error
        trained = bundle.arrays(model, None)
        return {name: trained[name] for name in merged}

    return teach
