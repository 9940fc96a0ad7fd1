"""Per-process caches that can be dropped at any time: the data, its partition and the model shell."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedssl.arrays import Arrays, sha256
from fedssl.config import COMPONENTS, MISSING, RunConfig, build, key_first
from fedssl.data.dataset import Splits
from fedssl.data.deficiency import Deficiency, Known
from fedssl.data.partition import OnDevice, Partitioner, partition
from fedssl.errors import ConfigError, DataError
from fedssl.evaluation.images import ImageEvaluation
from fedssl.evaluation.personal import PersonalEvaluation, client_score_names
from fedssl.models import bundle
from fedssl.models.encoder_file import read_encoder
from fedssl.objectives.objective import CLASSIFIER, UNKNOWN, Batch, Objective, Population
from fedssl.privacy.canaries import Canaries, throw
from fedssl.privacy.mechanism import Mechanism, Setting, Terms
from fedssl.seeding import generator, torch_stream
from fedssl.training.loop import Examples, Stream, make_batch

_OPEN: dict[str, "Workspace"] = {}


@dataclass
class Workspace:
    """What one process builds from a configuration, each thing when it is first asked for."""

    config: RunConfig
    _initial: dict[str, NDArray[Any]] = field(default_factory=dict)
    _halves: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)

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
        if self._dealt is None:
            return None
        return [self._without(part, self.known.server) for part in self._dealt]

    @cached_property
    def canaries(self) -> Canaries | None:
        """Examples that coins keep or leave out; None where there are none."""
        setting = self.config.canaries
        if setting.fraction == 0:
            return None
        if self._dealt is None:
            raise ConfigError(f"canaries.fraction={setting.fraction}: must be 0 with partition=on_device")
        parts = [self._without(self._divided(client)[0], self.known.server) for client in range(len(self._dealt))]
        return throw(parts, setting.fraction, setting.seed, flipped=setting.flipped)

    @staticmethod
    def _without(part: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
        return part[~np.isin(part, others)] if len(others) else part

    @cached_property
    def _dealt(self) -> list[NDArray[np.int64]] | None:
        """What the partition gives each client, before the server takes its own."""
        if isinstance(self.partitioner, OnDevice):
            return None
        return partition(self.splits.train, self.partitioner, self.config.seed)

    @cached_property
    def deficiency(self) -> Deficiency:
        """What takes labels away."""
        deficiency: Deficiency = build(self.config, "labels")
        return deficiency

    @cached_property
    def known(self) -> Known:
        """Which labels are known to whom of what clients train on, where the server made the partition."""
        return self._known({client: self._divided(client)[0] for client in range(len(self._dealt or ()))})

    def _known(self, holdings: Mapping[int, NDArray[np.int64]]) -> Known:
        train = self.splits.train
        try:
            return self.deficiency(train.labels, holdings, len(train.classes), self.config.seed)
        except ValueError as error:
            raise ConfigError(key_first(f"labels.{error}")) from error

    def labels(self, client: int) -> NDArray[np.int64]:
        """Return the classes of the examples in `indices`, `UNKNOWN` where the client knows none."""
        own = self.indices(client)
        return np.where(self._knowledge(client).labelled[own], self.splits.train.labels[own], UNKNOWN)

    def _knowledge(self, client: int) -> Known:
        """Return what is known, as far as this process can tell: a device knows of itself alone."""
        return self.known if self._dealt is not None else self._known({client: self._divided(client)[0]})

    @property
    def num_classes(self) -> int:
        """Classes of the data; 0 on a server of devices that was not told."""
        data = self.config.components["data"]
        return len(data.get("classes") or ()) if MISSING in data.values() else len(self.splits.train.classes)

    @property
    def num_clients(self) -> int:
        """Clients of the federation."""
        return self.partitioner.num_clients if isinstance(self.partitioner, OnDevice) else len(self.parts or ())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what a run depends on beside its settings: who holds and knows what, and the first backbone."""
        known: dict[str, NDArray[Any]] = dict(self._loaded)
        if self.parts is not None:
            known |= {"labels": self.splits.train.labels, "labelled": self.known.labelled}
            known |= {str(client): part for client, part in enumerate(self.parts)}
        return sha256(known) if known else ""

    def indices(self, client: int) -> NDArray[np.int64]:
        """Return the examples that `client` trains on in this process."""
        own, known = self._divided(client)[0], self._knowledge(client)
        own = self._without(own, known.server)
        own = own if self.canaries is None else self._without(own, self.canaries.left_out)
        return own[known.labelled[own]] if self.objective.needs_labels else own

    def held_out(self, client: int) -> NDArray[np.int64]:
        """Return the examples of `client` that it never trains on; none unless clients evaluate."""
        return self._divided(client)[1]

    def _divided(self, client: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return what a client trains on and what it holds out, before anything else is taken away."""
        if client not in self._halves:
            own = np.arange(len(self.splits.train)) if self._dealt is None else self._dealt[client]
            self._halves[client] = self._halved(own, client)
        return self._halves[client]

    def _halved(self, own: NDArray[np.int64], client: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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

    def some(self, client: int, size: int) -> Batch:
        """Return a batch of at most `size` of a client's examples."""
        own = self.indices(client)
        examples = Examples(self.splits.train, own, build(self.config, "augmentation"), self.labels(client))
        places = np.arange(min(size, len(own)))
        return make_batch(self.objective, examples, places, Stream(self.config.seed, client, 0), 0, self.device)

    @cached_property
    def mechanism(self) -> Mechanism | None:
        """The privacy mechanism; None where nothing is protected."""
        mechanism: Mechanism | None = build(self.config, "privacy")
        return mechanism

    @cached_property
    def protected(self) -> Setting:
        """What a mechanism has to know of the run."""
        procedure, config = build(self.config, "client"), self.config
        restricted = {
            "availability": config.components["availability"]["_target_"] is not None,
            "labelled_rounds": config.labelled_rounds > 0,
        }
        return Setting(
            objective=self.objective,
            model=self.model,
            batch_norm=config.batch_norm,
            augmentation=build(config, "augmentation"),
            procedure=procedure,
            rounds=config.rounds,
            epochs=procedure.epochs,
            num_clients=self.num_clients,
            num_examples=0 if self.parts is None else sum(len(part) for part in self.parts),
            cohort=config.cohort,
            fixed_cohort=next((name for name, there in restricted.items() if there), None),
            shows_clients=config.components["client_evaluation"]["_target_"] is not None,
        )

    @cached_property
    def terms(self) -> Terms:
        """What the mechanism comes to.

        Raises:
            ConfigError: There is no mechanism, or its noise cannot be found.
        """
        if self.mechanism is None:
            raise ConfigError("privacy=none: has no noise")
        try:
            return self.mechanism.terms(self.protected)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(key_first(f"privacy.{error}")) from error

    @cached_property
    def model(self) -> nn.ModuleDict:
        """The model shell; its values are whatever was loaded last."""
        frozen = self.config.batch_norm == "frozen"
        population = Population(self.largest_client, self.num_classes)
        try:
            model = bundle.build_bundle(
                lambda: build(self.config, "model"),
                self.objective,
                self.config.seed,
                population,
                frozen_norms=frozen,
            )
        except ValueError as error:
            raise ConfigError(key_first(f"objective.{error}")) from error
        try:
            bundle.load(model, {f"{bundle.BACKBONE}.{name}": array for name, array in self._loaded.items()})
        except ValueError as error:
            raise ConfigError(f"init={self.config.init}: does not fit the model, {error}") from error
        self._initial.update(bundle.arrays(model, None))
        model.to(self.device)
        return model

    @cached_property
    def _loaded(self) -> Arrays:
        """The backbone's tensors that a run begins with, where they are not drawn."""
        if self.config.init is None:
            return {}
        try:
            return read_encoder(Path(self.config.init))
        except (OSError, ValueError) as error:
            raise ConfigError(f"init={self.config.init}: {error}") from error

    @property
    def largest_client(self) -> int:
        """Examples of whoever has most, as far as this process can know: a server of devices knows of none."""
        if self.parts is not None:
            return max(len(self.known.server), *(len(part) for part in self.parts))
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
    smallest, batch = workspace.objective.min_batch, build(config, "client").batch_size
    if batch < smallest:
        raise ConfigError(f"client.batch_size={batch}: must be at least {smallest}, the objective's smallest batch")
    try:
        num_clients = workspace.num_clients
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(key_first(str(error))) from error
    _check_scores(workspace)
    for name, most, whole in (
        ("cohort", num_clients, "clients"),
        ("quorum", config.cohort or num_clients, "clients of a round"),
    ):
        value = getattr(config, name)
        if value is not None and value > most:
            raise ConfigError(f"{name}={value}: must be at most the {most} {whole}")
    _check_labels(workspace, num_clients)
    _check_held_out(workspace, num_clients)
    _check_norms(workspace)
    _check_privacy(workspace)
    return workspace


def _check_held_out(workspace: Workspace, num_clients: int) -> None:
    """Raise ConfigError when clients evaluate and one of them has nothing to hold out, or nothing left to train on."""
    if workspace.parts is None or workspace.config.components["client_evaluation"]["_target_"] is None:
        return
    for client in range(num_clients):
        workspace.held_out(client)
        if not len(workspace.indices(client)):
            raise ConfigError(f"client_evaluation: client {client} knows no label, and the objective needs one")


def _check_labels(workspace: Workspace, num_clients: int) -> None:
    """Raise ConfigError when the labels that are known, or the classes, are too few for what is asked."""
    deficiency, config = workspace.deficiency, workspace.config
    if workspace.parts is None:
        if not deficiency.on_devices:
            raise ConfigError("labels: must be all, partial_client or partial_data with partition=on_device")
        return
    known = workspace.known
    num_known = int(known.labelled.sum())
    if not num_known and (workspace.objective.needs_labels or config.labelled_rounds):
        raise ConfigError("labels: no client knows a label, and the objective or labelled_rounds needs one")
    if workspace.objective.needs_labels or config.labelled_rounds:
        most = sum(bool((workspace.labels(client) != UNKNOWN).any()) for client in range(num_clients))
        if config.quorum is not None and config.quorum > most:
            raise ConfigError(f"quorum={config.quorum}: must be at most the {most} clients that know labels")
    if CLASSIFIER in workspace.model and not num_known + len(known.server):
        raise ConfigError("labels: nobody knows a label, and the objective has a classifier")


def _check_privacy(workspace: Workspace) -> None:
    """Raise ConfigError when a guarantee would not hold."""
    mechanism, config = workspace.mechanism, workspace.config
    if mechanism is None:
        return
    mechanism.check(workspace.protected)
    if mechanism.at_server and config.quorum is not None:
        raise ConfigError(
            f"quorum={config.quorum}: must be null with privacy=client, a client that fails counts as zero"
        )
    workspace.terms  # noqa: B018 - the noise that a target asks for
    if workspace.parts is not None:
        largest = max(range(workspace.num_clients), key=lambda client: len(workspace.indices(client)))
        workspace.model.train()
        with torch_stream(config.seed, "try"):
            mechanism.try_out(workspace.model, lambda size: workspace.some(largest, size), workspace.objective)


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
    if isinstance(evaluation, ImageEvaluation) and evaluation.classifies and CLASSIFIER not in workspace.model:
        raise ConfigError("evaluation.scores: accuracy and worst class need an objective with a classifier")
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
