"""Which canaries the encoder of a run was trained on, and how much of them it memorises."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedssl.config import RunConfig
from fedssl.data.dataset import Dataset
from fedssl.errors import ConfigError
from fedssl.evaluation.transfer import fill
from fedssl.models import bundle
from fedssl.privacy.audit import layer_mem, sslmem
from fedssl.privacy.audit.attack import attack
from fedssl.privacy.audit.claims import Guesses, claims
from fedssl.privacy.audit.one_run import each_way, guess
from fedssl.privacy.audit.run_audit import RunAudit
from fedssl.privacy.audit.shadows import Shadow, taught
from fedssl.privacy.audit.views import Views
from fedssl.privacy.canaries import Canaries
from fedssl.report.rundir import ENCODER
from fedssl.seeding import generator
from fedssl.workspace import Workspace

ALIGNMENT = "alignment"
CALIBRATED = "alignment gained"


@dataclass(frozen=True, slots=True)
class Attacker:
    """Who has a run's encoder, and asks it for views of the canaries.

    Attributes:
        workspace: Of the run.
        views: The same for all encoders.
        most: Canaries, and examples of each other group, at most; None takes all.
        seed: Root of what is drawn.
    """

    workspace: Workspace
    views: Views
    most: int | None
    seed: int

    def audit(
        self,
        run_dir: Path,
        twin: Path | None,
        shadows: Mapping[Path, RunConfig],
        statements: Sequence[Mapping[str, Any]] | None,
    ) -> RunAudit:
        """Return what attacks on the encoder show.

        Args:
            run_dir: Directory of the run.
            twin: Of its twin; None leaves SSLMem out.
            shadows: Directories of shadow runs with their configurations.
            statements: Guarantees of the run.

        Raises:
            ConfigError: The run has no canaries, all of them are in or all out, or an encoder does not fit.
            DataError: A feature is not a finite number.
            ValueError: The shadows have too few canaries.
        """
        indices, included = self._canaries(self.workspace)
        if included.all() or not included.any():
            raise ConfigError("canaries: all are in or all are out, take more of them")
        train, paths = self.workspace.splits.train, [run_dir, *([] if twin is None else [twin])]
        encoders = [self._untrained(), *(self._trained(path) for path in paths)]
        untrained, *trained = self.views.alignments(encoders, train, indices)
        scores = {ALIGNMENT: -trained[0], CALIBRATED: untrained - trained[0]}
        accuracies = {}
        if shadows:
            features = self.views.features(encoders[1], train, indices)
            known = [self._shadow(path, config) for path, config in shadows.items()]
            for name, each in taught(indices, features, known, self.seed).items():
                scores[name] = each.scores
                if (accuracy := each.accuracy(included)) is not None:
                    accuracies[name] = accuracy
        number = each_way(len(indices))
        correct = {name: guess(values, included, number, number)[1] for name, values in scores.items()}
        guesses = Guesses(len(indices), 2 * number, correct)
        memorised = {} if twin is None else self._memorised(encoders[1:], trained, indices, included)
        return RunAudit(
            indices=indices,
            included=included,
            scores=scores,
            attacks={
                name: attack(values[included], values[~included], seed=self.seed) for name, values in scores.items()
            },
            accuracies=accuracies,
            guesses=guesses,
            claims=claims(statements, guesses),
            memorisation=memorised,
            layers={} if twin is None else self._layers(encoders[1:], indices, included),
        )

    def _canaries(self, workspace: Workspace) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the canaries of a run that are asked for, and whether each was trained on."""
        canaries = thrown(workspace)
        places = self._some(np.arange(len(canaries.indices)), "canaries")
        return canaries.indices[places], canaries.included[places]

    def _shadow(self, path: Path, config: RunConfig) -> Shadow:
        workspace = Workspace(config)
        workspace.splits = self.workspace.splits  # of the same settings
        indices, included = self._canaries(workspace)
        features = self.views.features(self._trained(path), workspace.splits.train, indices)
        return Shadow(indices, included, features)

    def _untrained(self) -> nn.Module:
        """Return the encoder that the run began with."""
        bundle.load(self.workspace.model, self.workspace.initial)
        return deepcopy(self.workspace.model[bundle.BACKBONE])

    def _trained(self, run_dir: Path) -> nn.Module:
        encoder = deepcopy(self.workspace.model[bundle.BACKBONE])
        fill(encoder, run_dir / ENCODER)
        return encoder

    def _memorised(
        self,
        encoders: Sequence[nn.Module],
        alignments: Sequence[sslmem.Curve],
        indices: NDArray[np.int64],
        included: NDArray[np.bool_],
    ) -> dict[str, sslmem.Memorisation]:
        """Return SSLMem of each group of examples by the encoders of a run and of its twin."""
        own = sslmem.memorisation(alignments[:1], alignments[1:])
        raw = {"candidate": own[included], "independent": own[~included]}
        for name, (dataset, some) in self._others().items():
            with_it, without = self.views.alignments(encoders, dataset, some)
            raw[name] = sslmem.memorisation([with_it], [without])
        return sslmem.report(raw)

    def _layers(
        self, encoders: Sequence[nn.Module], indices: NDArray[np.int64], included: NDArray[np.bool_]
    ) -> dict[str, layer_mem.Layer]:
        staged = [layer_mem.Staged(encoder) for encoder in encoders]
        alignments = self.views.alignments(staged, self.workspace.splits.train, indices)
        return layer_mem.report(tuple(layer_mem.stages(encoders[0])), alignments, included)

    def _others(self) -> dict[str, tuple[Dataset, NDArray[np.int64]]]:
        """Return the examples that both twins were trained on, where there are any, and those that neither was."""
        workspace = self.workspace
        train, test = workspace.splits.train, workspace.splits.test
        trained_on = np.concatenate([workspace.indices(client) for client in range(workspace.num_clients)])
        shared = np.setdiff1d(trained_on, thrown(workspace).indices)
        groups = {"shared": (train, shared), sslmem.EXTERNAL: (test, np.arange(len(test)))}
        chosen = {name: (data, self._some(own, name)) for name, (data, own) in groups.items()}
        return {name: (data, own) for name, (data, own) in chosen.items() if len(own)}

    def _some(self, indices: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        if self.most is None or self.most >= len(indices):
            return indices
        return np.sort(generator(self.seed, "audit", "subset", name).choice(indices, self.most, replace=False))


def thrown(workspace: Workspace) -> Canaries:
    """Return the canaries of a run; ConfigError where it has none."""
    if workspace.canaries is None:
        raise ConfigError("canaries.fraction=0: the run has no canaries, so there is nothing to guess; train with some")
    return workspace.canaries
