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
from fedssl.config import MISSING, RunConfig, build, key_first
from fedssl.data.dataset import Dataset, Splits
from fedssl.data.deficiency import Deficiency, Known
from fedssl.data.partition import OnDevice, Overlapping, Partitioner, partition
from fedssl.errors import ConfigError
from fedssl.evaluation.personal import PersonalEvaluation
from fedssl.models import bundle
from fedssl.models.encoder_file import read_encoder
from fedssl.objectives.objective import UNKNOWN, Batch, Objective, Population
from fedssl.privacy.canaries import Canaries, throw
from fedssl.privacy.example import Sampled
from fedssl.privacy.gradients import trainable
from fedssl.privacy.ledger import client_scope
from fedssl.privacy.mechanism import Mechanism, Setting, Terms
from fedssl.privacy.planted import Planted, Planting
from fedssl.privacy.unlearnable.noise import Noise
from fedssl.privacy.unlearnable.protected_dataset import ProtectedDataset, kept, stills
from fedssl.privacy.unlearnable.protector import Owned, Protector, Say, silent
from fedssl.report.rundir import PROTECTION
from fedssl.seeding import derive, generator
from fedssl.training.augment import Augmentation
from fedssl.training.loop import Examples, Stream, make_batch

_OPEN: dict[tuple[str, str | None], "Workspace"] = {}


@dataclass
class Workspace:
    """What one process builds from a configuration, each thing when it is first asked for."""

    config: RunConfig
    _initial: dict[str, NDArray[Any]] = field(default_factory=dict)
    _halves: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)
    _noise: dict[int, Noise] = field(default_factory=dict)

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
        return [self._without(self._dealt[part], self.known.server) for part in self.members]

    @cached_property
    def canaries(self) -> Canaries | None:
        """Examples that coins keep or leave out; None where there are none."""
        setting = self.config.canaries
        if setting.fraction == 0:
            return None
        if self._dealt is None:
            raise ConfigError(f"canaries.fraction={setting.fraction}: must be 0 with partition=on_device")
        parts = [self._without(self._divided(part)[0], self.known.server) for part in self.members]
        return throw(parts, setting.fraction, setting.seed, flipped=setting.flipped, coins=setting.coin_seed)

    @property
    def planting(self) -> Planting | None:
        """Canaries that are planted where noise is added; None where there are none."""
        setting = self.config.canaries
        if setting.directions == 0:
            return None
        return Planting(setting.directions, setting.seed, setting.coin_seed, setting.flipped)

    def planted(self, client: int) -> Planted | None:
        """Return the canaries in a client's steps, with nothing seen of them yet; None where there are none."""
        if self.planting is None or not isinstance(self.mechanism, Sampled):
            return None
        shapes = {name: tuple(value.shape) for name, value in trainable(self.model).items()}
        return self.planting.plant(client_scope(client), shapes)

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
    def protector(self) -> Protector | None:
        """What changes the images of owners; None where nothing does."""
        protector: Protector | None = build(self.config, "protection")
        return protector

    @cached_property
    def owner_parts(self) -> frozenset[int]:
        """Parts of the partition whose clients `owners` names."""
        setting = self.config.owners
        order = generator(setting.seed, "owners").permutation(self.num_parts)
        return frozenset(order[: round(setting.fraction * self.num_parts)].tolist())

    @cached_property
    def members(self) -> tuple[int, ...]:
        """The part of the partition that each client has: its own number, but where owners are absent."""
        setting = self.config.owners
        if not setting.absent:
            return tuple(range(self.num_parts))
        if self._dealt is None:
            raise ConfigError("owners.absent=true: must be false with partition=on_device")
        if not 0 < len(self.owner_parts) < self.num_parts:
            allowed = f"must leave out some of the {self.num_parts} clients where absent is true, and not all"
            raise ConfigError(f"owners.fraction={setting.fraction}: {allowed}; it names {len(self.owner_parts)}")
        return tuple(part for part in range(self.num_parts) if part not in self.owner_parts)

    @property
    def num_parts(self) -> int:
        """Parts of the partition: clients of the federation, and those that are absent."""
        return self.partitioner.num_clients if isinstance(self.partitioner, OnDevice) else len(self._dealt or ())

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """Clients that change their images before round 1."""
        absent = self.protector is None or self.config.owners.absent
        return () if absent else tuple(sorted(self.owner_parts))

    @cached_property
    def deficiency(self) -> Deficiency:
        """What takes labels away."""
        deficiency: Deficiency = build(self.config, "labels")
        return deficiency

    @cached_property
    def known(self) -> Known:
        """Which labels are known to whom of what clients train on, where the server made the partition."""
        return self._known({part: self._divided(part)[0] for part in self.members if self._dealt is not None})

    def _known(self, holdings: Mapping[int, NDArray[np.int64]]) -> Known:
        train = self.splits.train
        try:
            return self.deficiency(train.labels, holdings, len(train.classes), self.config.seed)
        except ValueError as error:
            raise ConfigError(key_first(f"labels.{error}")) from error

    def labels(self, client: int) -> NDArray[np.int64]:
        """Return the classes of the examples in `indices`, `UNKNOWN` where the client knows none."""
        return self._labels(client, self.indices(client))

    def num_labelled(self, client: int) -> tuple[int, int]:
        """Return of how many of its images a client knows the label, and how many there are."""
        labels = self._labels(client, self.whole(client))
        return int((labels != UNKNOWN).sum()), len(labels)

    def _labels(self, client: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(self._knowledge(client).labelled[indices], self.splits.train.labels[indices], UNKNOWN)

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
        whole = self.whole(client)
        return whole if self.canaries is None else self._without(whole, self.canaries.left_out)

    def whole(self, client: int) -> NDArray[np.int64]:
        """Return the examples that `client` could train on: those that it does, and canaries that are left out."""
        known = self._knowledge(client)
        own = self._without(self._divided(self.members[client])[0], known.server)
        return own[known.labelled[own]] if self.objective.needs_labels else own

    def held_out(self, client: int) -> NDArray[np.int64]:
        """Return the examples of `client` that it never trains on; none unless clients evaluate."""
        return self._divided(self.members[client])[1]

    def holding(self, part: int) -> NDArray[np.int64]:
        """Return the examples of a part of the partition, whether its client is in the federation or not."""
        return np.arange(len(self.splits.train)) if self._dealt is None else self._dealt[part]

    def _divided(self, part: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return what a client trains on and what it holds out, before anything else is taken away."""
        if part not in self._halves:
            self._halves[part] = self._halved(self.holding(part), part)
        return self._halves[part]

    def _halved(self, own: NDArray[np.int64], part: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        evaluation: PersonalEvaluation | None = build(self.config, "client_evaluation")
        if evaluation is None:
            return own, own[:0]
        rng = generator(self.config.seed, "held_out", part)
        try:
            return evaluation.split(own, self.splits.train.labels[own], rng)
        except ValueError as error:
            reason = f"partition {part} has no class with two examples to hold one out"
            raise ConfigError(f"client_evaluation: {reason}") from error

    def examples_of(self, client: int) -> Dataset:
        """Return the data set that a client trains on: the clean one, or its own examples with noise on them."""
        noise = self.noise(client)
        return self.splits.train if noise is None else ProtectedDataset(self.splits.train, noise, self.whole(client))

    def noise(self, client: int, say: Say = silent) -> Noise | None:
        """Return what a client adds to its images; None where it adds nothing.

        It is made when it is first asked for, kept in memory, and written to the directory of the run where that is
        here.

        Args:
            client: Of the federation.
            say: Told how far it is.

        Raises:
            ConfigError: The images or the labels of the client do not suffice.
        """
        protector = self.protector
        if protector is None or client not in self.owners or not len(self.whole(client)):
            return None
        if client not in self._noise:
            run_dir = self.config.run_dir
            folder = Path(run_dir) / PROTECTION if run_dir is not None and Path(run_dir).is_dir() else None
            path = None if folder is None else folder / f"{client}.npz"
            self._noise[client] = kept(path, lambda: self._fitted(protector, client, say))
        return self._noise[client]

    def _fitted(self, protector: Protector, client: int, say: Say) -> Noise:
        train, whole = self.splits.train, self.whole(client)
        labels, seed = self._labels(client, whole), derive(self.config.seed, "protection", client)
        try:
            return protector.fit(Owned(stills(train, whole), labels, len(train.classes), seed, self.device, say))
        except ValueError as error:
            raise ConfigError(f"client {client}: {key_first(f'protection.{error}')}") from error

    @cached_property
    def objective(self) -> Objective:
        """The local objective."""
        objective: Objective = build(self.config, "objective")
        return objective

    @cached_property
    def augmentation(self) -> Augmentation:
        """What makes the views."""
        augmentation: Augmentation = build(self.config, "augmentation")
        return augmentation

    @cached_property
    def procedure(self) -> Any:  # noqa: ANN401  (its type lies with the clients)
        """What a client does in a round."""
        return build(self.config, "client")

    def some(self, client: int, size: int) -> Batch:
        """Return a batch of at most `size` of a client's examples."""
        own = self.indices(client)
        examples = Examples(self.splits.train, own, self.augmentation, self.labels(client))
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
        config = self.config
        restricted = {
            "availability": config.components["availability"]["_target_"] is not None,
            "labelled_rounds": config.labelled_rounds > 0,
        }
        scores = {"early_stop.score": config.early_stop.score, "checkpoint.best": config.checkpoint.best}
        return Setting(
            objective=self.objective,
            model=self.model,
            batch_norm=config.batch_norm,
            augmentation=self.augmentation,
            procedure=self.procedure,
            rounds=config.rounds,
            epochs=self.procedure.epochs,
            num_clients=self.num_clients,
            num_examples=0 if self.parts is None else sum(len(part) for part in self.parts),
            cohort=config.cohort,
            fixed_cohort=next((name for name, there in restricted.items() if there), None),
            shows_clients=config.components["client_evaluation"]["_target_"] is not None,
            server_trains=self.parts is not None and len(self.known.server) > 0,
            chooses=next((name for name, score in scores.items() if score is not None), None),
            evaluates=config.components["evaluation"]["_target_"] is not None,
            begins_trained=config.init is not None,
            overlapping=isinstance(self.partitioner, Overlapping),
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
            text = str(error)  # the objective's own words, but where it wants another model
            raise ConfigError(key_first(text if text.startswith("model ") else f"objective.{text}")) from error
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


def open_workspace(config: RunConfig) -> Workspace:
    """Return this process's workspace for `config`, and fix what results depend on: threads and kernels."""
    torch.set_num_threads(config.engine.threads_per_client)
    torch.use_deterministic_algorithms(True)
    key = (config.text, config.run_dir)
    if key not in _OPEN:
        _OPEN.clear()
        _OPEN[key] = Workspace(config)
    return _OPEN[key]
