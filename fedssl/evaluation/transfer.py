"""The encoder of a finished run, evaluated again: with other scores, or on another data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from fedssl.compose import load_run
from fedssl.config import RunConfig, build
from fedssl.data.dataset import Splits
from fedssl.errors import ConfigError, DataError
from fedssl.evaluation.features import evaluating
from fedssl.evaluation.images import ImageEvaluation
from fedssl.models import bundle
from fedssl.models.encoder import Encoder
from fedssl.models.encoder_file import read_encoder
from fedssl.objectives.objective import CLASSIFIER
from fedssl.report.rundir import CLASSIFIER_FILE, CONFIG, ENCODER
from fedssl.seeding import torch_stream
from fedssl.workspace import Workspace, open_workspace


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of the encoder a run began with, and of the one it ended with."""

    untrained: Mapping[str, float]
    trained: Mapping[str, float]


def evaluate_run(run_dir: Path, overrides: Sequence[str] = ()) -> Comparison:
    """Evaluate the encoder of the run in `run_dir`.

    Args:
        run_dir: Directory that a run left behind.
        overrides: Changes of the run's own configuration, such as "data=digits" or "evaluation=images_full".

    Raises:
        ConfigError: It is not the directory of a finished run, or a setting is wrong.
        DataError: The data cannot be used.
    """
    config = finished_configuration(run_dir, overrides)
    evaluation = build(config, "evaluation")
    if evaluation is None:
        raise ConfigError("evaluation=none: has no scores, choose another")
    workspace = open_workspace(config)
    encoder = _untrained(config).to(workspace.device)
    _check_fit(encoder, workspace.splits, workspace.device)
    if isinstance(evaluation, ImageEvaluation) and evaluation.classifies:
        return _with_classifier(run_dir, evaluation, workspace)
    untrained_scores = evaluation(encoder, workspace.splits, workspace.device)
    fill(encoder, run_dir / ENCODER)
    return Comparison(untrained_scores, evaluation(encoder, workspace.splits, workspace.device))


def _with_classifier(run_dir: Path, evaluation: ImageEvaluation, workspace: Workspace) -> Comparison:
    """Evaluate the whole model that classifies, and not its encoder alone.

    Raises:
        ConfigError: The run has no classifier, or one of another number of classes than the data have.
    """
    path = run_dir / CLASSIFIER_FILE
    if CLASSIFIER not in workspace.model or not path.is_file():
        raise ConfigError(f"evaluation.scores={', '.join(evaluation.scores)}: {run_dir} has no classifier")
    model = workspace.model
    bundle.load(model, workspace.initial)
    whole = (cast(Encoder, model[bundle.BACKBONE]), workspace.splits, workspace.device, model[CLASSIFIER])
    untrained = evaluation(*whole)
    fill(model[bundle.BACKBONE], run_dir / ENCODER)
    fill(model[CLASSIFIER], path)
    return Comparison(untrained, evaluation(*whole))


def fill(module: nn.Module, path: Path) -> None:
    """Load all tensors of `module` from a file; ConfigError unless it has each of them."""
    try:
        tensors = read_encoder(path)
        if missing := sorted(module.state_dict().keys() - tensors.keys()):
            raise ValueError(f"{missing[0]} stayed with the clients")
        bundle.load(module, tensors)
    except ValueError as error:
        raise ConfigError(f"{path}: does not fit the model, {error}") from error


def finished_configuration(run_dir: Path, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration of a run that has ended."""
    for name in (CONFIG, ENCODER):
        if not (run_dir / name).is_file():
            raise ConfigError(f"{run_dir}: is not the directory of a finished run, it has no {name}")
    return load_run((run_dir / CONFIG).read_text(encoding="utf-8"), overrides)


def _untrained(config: RunConfig) -> Encoder:
    """Return the encoder as the run began with it: the first thing drawn from its stream."""
    with torch_stream(config.seed, "init"):
        encoder: Encoder = build(config, "model")
    return encoder


def _check_fit(encoder: Encoder, splits: Splits, device: torch.device) -> None:
    """Raise DataError unless the encoder takes an example of the data."""
    example = splits.test.read(0)
    clip = torch.from_numpy(np.array(example)).to(device).permute(3, 0, 1, 2)[None].float()
    try:
        with evaluating(encoder), torch.no_grad():
            encoder(clip)
    except (RuntimeError, ValueError) as error:
        shape = f"{example.shape[-1]} channels and {len(example)} frames"
        raise DataError(f"data: examples of {shape} do not fit the encoder; is data.channels right?") from error
