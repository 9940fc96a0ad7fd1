"""Per-process caches that can be dropped at any time: the data, its partition and the model shell."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedssl.arrays import Arrays, sha256
from fedssl.config import COMPONENTS, MISSING, RunConfig, build, key_first
from fedssl.data.dataset import Splits
from fedssl.data.partition import OnDevice, Partitioner, partition
from fedssl.errors import ConfigError, DataError
from fedssl.evaluation.personal import PersonalEvaluation, client_score_names
from fedssl.models import bundle
from fedssl.objectives.objective import Objective
from fedssl.seeding import generator

_OPEN: dict[str, "Workspace"] = {}


@dataclass
class Workspace:
    """What one process builds from a configuration, each thing when it is first asked for."""

    config: RunConfig
    _initial: dict[str, NDArray[Any]] = field(default_factory=dict)

    @cached_property
    def device(self) -> torch.device:
        """The device that trains here.

        Raises:
            ConfigError: The configuration asks for a GPU, and this machine has none.
        """
        share = self.config.engine.num_gpus_per_client
        if share != 0 and not torch.cuda.is_available():
            raise ConfigError(f"engine.num_gpus_per_client={share}: must be 0, this machine has no GPU")
        return torch.device("cpu" if share == 0 else "cuda")

    @cached_property
    def splits(self) -> Splits:
        """Training and held-out examples."""
        splits: Splits = build(self.config, "data")
        return splits

    @cached_property
    def partitioner(self) -> Partitioner | OnDevice:
        """What divides the training examples."""
        partitioner: Partitioner | OnDevice = build(self.config, "partition")
        return partitioner

    @cached_property
    def parts(self) -> list[NDArray[np.int64]] | None:
        """Example indices of each client; None when every client brings its own examples."""
        if isinstance(self.partitioner, OnDevice):
            return None
        return partition(self.splits.train, self.partitioner, self.config.seed)

    @property
    def num_clients(self) -> int:
        """Clients of the federation."""
        return self.partitioner.num_clients if isinstance(self.partitioner, OnDevice) else len(self.parts or ())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of which examples every client holds; empty where the server has none."""
        if self.parts is None:
            return ""
        return sha256({"labels": self.splits.train.labels, **{str(k): part for k, part in enumerate(self.parts)}})

    def indices(self, client: int) -> NDArray[np.int64]:
        """Return the examples that `client` trains on in this process."""
        return self._divided(client)[0]

    def held_out(self, client: int) -> NDArray[np.int64]:
        """Return the examples of `client` that it never trains on; none unless clients evaluate."""
        return self._divided(client)[1]

    def _divided(self, client: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        own = np.arange(len(self.splits.train)) if self.parts is None else self.parts[client]
        evaluation: PersonalEvaluation | None = build(self.config, "client_evaluation")
        if evaluation is None:
            return own, own[:0]
        rng = generator(self.config.seed, "held_out", client)
        try:
            return evaluation.split(own, self.splits.train.labels[own], rng)
        except ValueError as error:
            reason = f"partition {client} has no class with two examples to hold one out"
            raise ConfigError(f"client_evaluation: {reason}") from error

    @cached_property
    def objective(self) -> Objective:
        """The local objective."""
        objective: Objective = build(self.config, "objective")
        return objective

    @cached_property
    def model(self) -> nn.ModuleDict:
        """The model shell; its values are whatever was loaded last."""
        frozen = self.config.batch_norm == "frozen"
        try:
            model = bundle.build_bundle(
                lambda: build(self.config, "model"),
                self.objective,
                self.config.seed,
                self.largest_client,
                frozen_norms=frozen,
            )
        except ValueError as error:
            raise ConfigError(key_first(f"objective.{error}")) from error
        self._initial.update(bundle.arrays(model, None))
        model.to(self.device)
        return model

    @property
    def largest_client(self) -> int:
        """Examples of the largest client, as far as this process can know: a server of devices knows of none."""
        if self.parts is not None:
            return max(len(part) for part in self.parts)
        return 0 if MISSING in self.config.components["data"].values() else len(self.splits.train)

    def shared(self, groups: Collection[str] | None) -> Arrays:
        """Return the untrained tensors that are exchanged.

        Args:
            groups: Names of groups; None means all that may leave a client.

        Raises:
            ConfigError: A group is unknown, or must not leave a client.
        """
        private = self.objective.contract.private_groups
        allowed = [name for name in self.model if name not in private]
        wrong = sorted(set(groups or ()) - set(allowed))
        if wrong:
            raise ConfigError(f"strategy.share={wrong[0]}: must be among {', '.join(allowed)}")
        local = bundle.norm_names(self.model) if self.config.batch_norm == "local" else frozenset()
        wanted = set(allowed if groups is None else groups)
        return {
            name: array for name, array in self.initial.items() if name.split(".")[0] in wanted and name not in local
        }

    @property
    def initial(self) -> Arrays:
        """Every tensor of the untrained model, the same in every process."""
        self.model  # noqa: B018 - building the shell fills the initial values
        return self._initial


def prepare(config: RunConfig) -> Workspace:
    """Open the workspace of a server after everything in `config` was tried once, so that mistakes show at the start.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The data cannot be used.
    """
    workspace = open_workspace(config)
    workspace.device  # noqa: B018 - a GPU that is not there
    for name in COMPONENTS:
        if name != "data":
            build(config, name)
    _check_scores(workspace)
    smallest, batch = workspace.objective.min_batch, build(config, "client").batch_size
    if batch < smallest:
        raise ConfigError(f"client.batch_size={batch}: must be at least {smallest}, the objective's smallest batch")
    try:
        num_clients = workspace.num_clients
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(key_first(str(error))) from error
    for name, most, whole in (
        ("cohort", num_clients, "clients"),
        ("quorum", config.cohort or num_clients, "clients of a round"),
    ):
        value = getattr(config, name)
        if value is not None and value > most:
            raise ConfigError(f"{name}={value}: must be at most the {most} {whole}")
    if workspace.parts is not None and config.components["client_evaluation"]["_target_"] is not None:
        for client in range(num_clients):
            workspace.held_out(client)
    _check_norms(workspace)
    return workspace


def _check_norms(workspace: Workspace) -> None:
    """Raise ConfigError when `batch_norm` asks for what the model or the evaluation cannot do."""
    policy = workspace.config.batch_norm
    if policy != "share" and not bundle.norm_names(workspace.model):
        raise ConfigError(f"batch_norm={policy}: must be share, the model has no batch normalisation")
    if policy == "local" and build(workspace.config, "evaluation") is not None:
        raise ConfigError("batch_norm=local: needs evaluation=none, no client uses the server's; see client_evaluation")


def _check_scores(workspace: Workspace) -> None:
    """Raise ConfigError when a setting names a score that nobody reports."""
    config, names = workspace.config, []
    evaluation, personal = build(config, "evaluation"), build(config, "client_evaluation")
    if evaluation is not None:
        names += evaluation.score_names
        workspace.splits  # noqa: B018 - the server evaluates on them
    if personal is not None:
        names += [name for score in personal.score_names for name in client_score_names(score)]
    for key, score in (("checkpoint.best", config.checkpoint.best), ("early_stop.score", config.early_stop.score)):
        if score is not None and score not in names:
            raise ConfigError(f"{key}={score}: must be a score of the evaluation: {', '.join(names) or 'it has none'}")


def open_workspace(config: RunConfig) -> Workspace:
    """Return this process's workspace for `config`, and fix what results depend on: threads and kernels."""
    torch.set_num_threads(config.engine.threads_per_client)
    torch.use_deterministic_algorithms(True)
    if config.text not in _OPEN:
        _OPEN.clear()
        _OPEN[config.text] = Workspace(config)
    return _OPEN[config.text]
