"""The audit of a finished run whose canaries were trained on or left out by secret coins."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedssl.checks import at_least
from fedssl.config import differing_keys
from fedssl.data.dataset import Dataset
from fedssl.errors import ConfigError
from fedssl.evaluation.transfer import fill, finished_configuration
from fedssl.models import bundle
from fedssl.privacy.audit import layer_mem, sslmem
from fedssl.privacy.audit.attack import Attack, attack
from fedssl.privacy.audit.claims import Claim, Guesses, claims
from fedssl.privacy.audit.one_run import guess
from fedssl.privacy.audit.views import Views
from fedssl.privacy.canaries import Canaries
from fedssl.report.records import plain
from fedssl.report.rundir import ENCODER, RESULT, RunDirectory
from fedssl.seeding import generator
from fedssl.workspace import Workspace, open_workspace

ALIGNMENT = "alignment"
CALIBRATED = "alignment gained"
_GUESSED = 5  # one canary of so many is guessed to be in, and as many to be out


@dataclass(frozen=True, slots=True)
class RunAudit:
    """What attacks on the encoder of a run show.

    Attributes:
        indices: `[num_canaries]` canaries, among the training examples.
        included: `[num_canaries]` whether each was trained on.
        scores: `[num_canaries]` of each attack by name: "alignment" is minus the mean distance of an example's views,
            "alignment gained" what training has added to it.
        attacks: What the scores tell, by the same names.
        guesses: What they guess of the coins.
        claims: Upper and lower bounds on the epsilon of an example.
        memorisation: SSLMem of candidates (in the run), independents (in its twin), shared and external examples;
            empty without a twin.
        layers: SSLMem of each stage of the encoder, by its name, for all canaries; empty without a twin.
    """

    indices: NDArray[np.int64] = field(repr=False)
    included: NDArray[np.bool_] = field(repr=False)
    scores: Mapping[str, NDArray[np.float64]] = field(repr=False)
    attacks: Mapping[str, Attack]
    guesses: Guesses
    claims: tuple[Claim, ...]
    memorisation: Mapping[str, sslmem.Memorisation]
    layers: Mapping[str, layer_mem.Layer]

    @property
    def violated(self) -> bool:
        """Whether an attack shows more than a guarantee of the run allows."""
        return any(claim.violated for claim in self.claims)

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON values."""
        guesses = self.guesses
        written = ("mean", "top_mean", "ks_statistic", "ks_p_value")
        memorised = {
            name: {**{key: getattr(each, key) for key in written}, "raw": each.raw.tolist()}
            for name, each in self.memorisation.items()
        }
        layers = {name: asdict(each) for name, each in self.layers.items()}
        attacks = {
            name: {
                "auc": each.auc,
                "auc_interval": each.interval,
                "balanced_accuracy": each.balanced_accuracy,
                "advantage": each.advantage,
                "tpr_at": each.tpr_at,
                "guesses": guesses.num_guesses,
                "correct": guesses.correct[name],
                "scores": self.scores[name].tolist(),
            }
            for name, each in self.attacks.items()
        }
        bounds = [
            {"unit": each.unit, "epsilon": each.epsilon, "delta": each.delta, "lower": each.lower}
            for each in self.claims
        ]
        canaries = {"indices": self.indices.tolist(), "included": self.included.tolist()}
        values = {"violated": self.violated, "claims": bounds, "attacks": attacks, "sslmem": memorised}
        return {name: plain(value) for name, value in {**values, "layers": layers, "canaries": canaries}.items()}


def audit_run(
    run_dir: Path, twin: Path | None = None, *, num_views: int = 10, max_examples: int | None = 2000, seed: int = 0
) -> RunAudit:
    """Attack the encoder of a finished run.

    Args:
        run_dir: Directory of a run with canaries.
        twin: Directory of the same run with `canaries.flipped` turned over, for SSLMem; None leaves that out.
        num_views: Views of each example, the same for all encoders.
        max_examples: Most canaries, and most examples of each other group; None takes all.
        seed: Root of what the audit draws.

    Raises:
        ConfigError: It is not the directory of a finished run with canaries, or the twin is not its twin.
        DataError: The data cannot be used.
    """
    at_least(2, num_views=num_views, max_examples=max_examples)
    workspace = _open(run_dir, twin)
    result = RunDirectory(run_dir).read_result()
    if result is None:
        raise ConfigError(f"{run_dir}: is not the directory of a finished run, it has no {RESULT}")
    canaries = _canaries(workspace)
    places = _some(np.arange(len(canaries.indices)), max_examples, seed, "canaries")
    indices, included = canaries.indices[places], canaries.included[places]
    if included.all() or not included.any():
        raise ConfigError("canaries: all are in or all are out, take more of them")
    views = Views(workspace, num_views, seed)
    encoders = [_untrained(workspace), *(_trained(workspace, path) for path in (run_dir, twin) if path is not None)]
    untrained, *trained = views.alignments(encoders, workspace.splits.train, indices)
    scores = {ALIGNMENT: -trained[0], CALIBRATED: untrained - trained[0]}
    each = len(indices) // _GUESSED
    guesses = {name: guess(values, included, each, each)[1] for name, values in scores.items()}
    all_guesses = Guesses(len(indices), 2 * each, guesses)
    attacks = {name: attack(values[included], values[~included], seed=seed) for name, values in scores.items()}
    memorised, layers = {}, {}
    if twin is not None:
        own = sslmem.memorisation(trained[:1], trained[1:])
        raw = {"candidate": own[included], "independent": own[~included]}
        others = _others(workspace, max_examples, seed)
        memorised = sslmem.report(raw | {name: _raw(views, encoders[1:], *some) for name, some in others.items()})
        staged = views.alignments([layer_mem.Staged(each) for each in encoders[1:]], workspace.splits.train, indices)
        layers = layer_mem.report(tuple(layer_mem.stages(encoders[1])), staged, included)
    bounds = claims(result.privacy, all_guesses)
    return RunAudit(indices, included, scores, attacks, all_guesses, bounds, memorised, layers)


def _open(run_dir: Path, twin: Path | None) -> Workspace:
    """Return the workspace of the run; ConfigError unless it has canaries, and its twin the same ones flipped."""
    config = finished_configuration(run_dir, [])
    if twin is not None:
        different = differing_keys(config.text, finished_configuration(twin, []).text)
        if [line.partition(":")[0] for line in different] != ["canaries.flipped"]:
            what = "; ".join(different) or "nothing"
            raise ConfigError(f"twin={twin}: must differ from {run_dir} in canaries.flipped alone, got {what}")
    return open_workspace(config)


def _canaries(workspace: Workspace) -> Canaries:
    """Return the canaries of a run; ConfigError where it has none."""
    if workspace.canaries is None:
        raise ConfigError("canaries.fraction=0: the run has no canaries, so there is nothing to guess; train with some")
    return workspace.canaries


def _untrained(workspace: Workspace) -> nn.Module:
    """Return the encoder that the run began with."""
    bundle.load(workspace.model, workspace.initial)
    return deepcopy(workspace.model[bundle.BACKBONE])


def _trained(workspace: Workspace, run_dir: Path) -> nn.Module:
    encoder = deepcopy(workspace.model[bundle.BACKBONE])
    fill(encoder, run_dir / ENCODER)
    return encoder


def _raw(
    views: Views, encoders: Sequence[nn.Module], dataset: Dataset, indices: NDArray[np.int64]
) -> NDArray[np.float64]:
    with_it, without = views.alignments(encoders, dataset, indices)
    return sslmem.memorisation([with_it], [without])


def _others(workspace: Workspace, most: int | None, seed: int) -> dict[str, tuple[Dataset, NDArray[np.int64]]]:
    """Return the examples that both twins were trained on, where there are any, and those that neither was."""
    train, test = workspace.splits.train, workspace.splits.test
    trained_on = np.concatenate([workspace.indices(client) for client in range(workspace.num_clients)])
    shared = np.setdiff1d(trained_on, _canaries(workspace).indices)
    groups = {"shared": (train, shared), sslmem.EXTERNAL: (test, np.arange(len(test)))}
    chosen = {name: (data, _some(own, most, seed, name)) for name, (data, own) in groups.items()}
    return {name: (data, own) for name, (data, own) in chosen.items() if len(own)}


def _some(indices: NDArray[np.int64], most: int | None, seed: int, name: str) -> NDArray[np.int64]:
    if most is None or most >= len(indices):
        return indices
    return np.sort(generator(seed, "audit", "subset", name).choice(indices, most, replace=False))
