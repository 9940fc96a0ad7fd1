"""The ServerApp: one run from configuration to report, the same on every runtime."""

import copy
import json
import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedssl.arrays import Arrays, sha256
from fedssl.checkpoint import Bundle
from fedssl.compose import load
from fedssl.config import RunConfig, build, key_first
from fedssl.data.deficiency import AllLabels
from fedssl.data.overlap import overlap
from fedssl.data.partition import counts
from fedssl.errors import ConfigError, DataError, PrivacyError, RunError
from fedssl.evaluation.images import ImageEvaluation
from fedssl.evaluation.neighbours import Answer, neighbours
from fedssl.evaluation.video import VideoEvaluation
from fedssl.models import bundle
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import CLASSIFIER, UNKNOWN
from fedssl.prepare import prepare
from fedssl.privacy.account import Account
from fedssl.privacy.client import Client
from fedssl.report.html import Held, write_report
from fedssl.report.progress import Progress
from fedssl.report.records import RunResult
from fedssl.report.rundir import CONFIG, ERROR, PLANTED, RunDirectory
from fedssl.report.tracker import Tracker
from fedssl.report.versions import versions
from fedssl.simulation.grid import SimulationGrid
from fedssl.simulation.local import LocalGrid
from fedssl.workspace import Workspace
from strategies.averaging import Averaging
from strategies.base import Federated, Plan
from strategies.continuation import Saver, find_bundle
from strategies.recorder import Evaluator, Recorder
from strategies.server_training import teacher

LOGGER = logging.getLogger("fedssl")
_PRIVACY = "privacy"  # where a bundle keeps how far the ledger is

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run on Flower's own runtime; the one key of the run configuration is "overrides"."""
    run(load(str(context.run_config["overrides"])), grid)


class _Run:
    """What a run is made of; going on with one needs its last bundle beside."""

    def __init__(self, config: RunConfig, grid: Grid) -> None:
        self._begun = time.monotonic()
        self.config = config
        self.workspace = prepare(config)
        self.fingerprint = self.workspace.fingerprint
        self.strategy: Federated = build(config, "strategy")
        self.initial = self.workspace.shared(self.strategy.share)
        try:
            self.strategy.extras(self.initial)  # a rule that does not go with the objective says so here
        except ValueError as error:
            raise ConfigError(key_first(str(error))) from error
        _check_rule(self.workspace, self.strategy, self.initial)
        self.teach = teacher(self.workspace)
        self.tracker: Tracker | None = build(config, "tracking")
        self.progress = Progress()
        path = run_directory(config)
        goes_on = config.resume is not None and (path / CONFIG).exists()
        self.saved = find_bundle(config, path, self.fingerprint) if goes_on else None
        self.saver = Saver(path, config.checkpoint, grid)
        if self.saved is not None:
            self.saver.restore(self.saved)
        records = self.saved.records if self.saved else ()
        self.rundir = RunDirectory.reopen(path, records) if goes_on else RunDirectory.create(path, config.text)
        try:
            self.account = _account(self.workspace, self.rundir, self.saved)
        except ConfigError:
            self.rundir.close()
            raise
        in_background = not isinstance(grid, LocalGrid)
        self.evaluator = Evaluator(lambda arrays: _scores(self.workspace, arrays), config, in_background=in_background)

    def strategy_state(self) -> Mapping[str, Any]:
        """Return what the server rule keeps."""
        return {**self.strategy.state(), **({_PRIVACY: self.account.state()} if self.account else {})}

    def seconds(self) -> float:
        """Wall-clock time, that of earlier processes included."""
        return (self.saved.seconds if self.saved else 0.0) + time.monotonic() - self._begun


def _account(workspace: Workspace, rundir: RunDirectory, saved: Bundle | None) -> Account | None:
    """Open the ledger of a run that protects anything."""
    if workspace.mechanism is None:
        return None
    state = saved.strategy[_PRIVACY] if saved else None
    return Account(
        workspace.mechanism, workspace.protected, rundir.path, workspace.config.seed, state, workspace.planting
    )


def _check_rule(workspace: Workspace, strategy: Federated, initial: Arrays) -> None:
    """Raise PrivacyError when the server rule asks for more than a mechanism may release."""
    mechanism = workspace.mechanism
    if mechanism is None:
        return
    rule = type(strategy).__name__
    if strategy.extras(initial):
        what = "needs arrays beside the model, which nobody noises; use strategy=fedavg, fedavgm or fedadam"
        raise PrivacyError(f"strategy={rule}: {what}", "PRIV-STATE")
    if strategy.metrics:
        what = f"needs {', '.join(strategy.metrics)} of every client, which nobody noises; use strategy=fedavg"
        raise PrivacyError(f"strategy={rule}: {what}", "PRIV-METRIC")
    if not isinstance(mechanism, Client):
        return
    if type(strategy) is not Averaging:
        what = "is no mean, so noise for a mean does not cover it; use strategy=fedavg, fedavgm or fedadam"
        raise PrivacyError(f"strategy={rule}: {what}", "PRIV-AGG")
    if strategy.weights == "examples" and mechanism.weight_cap is None:
        what = "one large client would move the mean by more than the clip; set strategy.weights=equal, or a"
        raise PrivacyError(f"strategy.weights=examples: {what} privacy.weight_cap", "PRIV-WEIGHTS")


def run_directory(config: RunConfig) -> Path:
    """Return the directory of a run: the one asked for, or a new one under outputs/."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path("outputs") / datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S-%f")


def run(config: RunConfig, grid: Grid) -> tuple[RunResult, Path]:
    """Run every round on `grid` and leave the run directory behind, also when the run fails on its way.

    Returns:
        The result and the run directory.

    Raises:
        ConfigError: A setting is wrong; nothing was written.
        DataError: The data cannot be used; nothing was written.
        RunError: The run ended early; the text names the run directory, which holds what was reached.
    """
    if done := _completed(config):
        return done
    run = _Run(config, grid)
    recorder = Recorder(run)
    if run.tracker is not None:
        position = run.saved.tracker if run.saved else {}
        run.tracker.start({"config": config.text, "run_dir": str(run.rundir.path)}, position)
    status = "completed"
    failure: BaseException | None = None
    answers: tuple[Answer, ...] = ()
    try:
        with run.progress:
            run.progress.begin(config.rounds, len(recorder.records))
            if isinstance(grid, SimulationGrid):
                _protect(run)
            if run.saved is None:
                recorder.untrained = _scores(run.workspace, run.initial)
            if recorder.stopped is None:  # a process that was killed after it stopped early has nothing left to train
                _train(run, recorder, grid)
            answers = _neighbours(run.workspace, recorder.arrays)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever ended the run, its rounds are kept
        status, failure = _reason(error), error
        run.rundir.write_text(ERROR, traceback.format_exc())
    finally:
        run.evaluator.close()
    result = _result(run, recorder, status)
    _finish(run, recorder, result, answers)
    if failure is not None:
        raise RunError(f"{status}; run directory {run.rundir.path}") from failure
    return result, run.rundir.path


def _completed(config: RunConfig) -> tuple[RunResult, Path] | None:
    """Return the result of a run that is to go on and has ended already."""
    if config.resume is None:
        return None
    path = run_directory(config)
    result = RunDirectory(path).read_result()
    if result is None or result.status != "completed":
        return None
    find_bundle(config, path, prepare(config).fingerprint)
    LOGGER.warning("run_dir=%s: is completed already, nothing is run again", path)
    return result, path


def _protect(run: _Run) -> None:
    """Make the noise of every client that protects its images, once for all workers; devices make their own."""
    begun, owners = time.monotonic(), run.workspace.owners
    for client in owners:
        run.workspace.noise(client, partial(run.progress.protecting, client))
    if owners:
        run.progress.protected(len(owners), time.monotonic() - begun)


def _protection(workspace: Workspace) -> str | None:
    """Say what owners do to their images."""
    protector, owners = workspace.protector, workspace.owners
    if protector is None or not owners:
        return None
    return f"{type(protector).__name__} {protector.budget}/255, {len(owners)} of {workspace.num_clients} clients"


def _train(run: _Run, recorder: Recorder, grid: Grid) -> None:
    workspace, config = run.workspace, run.workspace.config
    plan = Plan(
        rounds=config.rounds,
        seed=config.seed,
        num_clients=workspace.num_clients,
        cohort=config.cohort,
        quorum=config.quorum,
        num_examples=None if workspace.parts is None else lambda partition: len(workspace.indices(partition)),
        num_labelled=lambda partition: int((workspace.labels(partition) != UNKNOWN).sum()),
        needs_labels=workspace.objective.needs_labels and not isinstance(workspace.deficiency, AllLabels),
        labelled_rounds=config.labelled_rounds,
        teach=run.teach,
        clients_score=None if build(config, "client_evaluation") is None else run.evaluator.due,
        availability=build(config, "availability"),
        account=run.account,
        history=tuple(recorder.records),
        state={name: value for name, value in (run.saved.strategy if run.saved else {}).items() if name != _PRIVACY},
    )

    try:
        run.strategy.start(grid, recorder.arrays, plan, recorder, bundle.buffer_names(workspace.model))
    except Exception:
        if recorder.close():  # else the round before, whose scores are there only now, was the last that counts
            raise
    finally:
        recorder.close()


def _reason(error: BaseException) -> str:
    """Say in one line why a run ended early."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = " ".join(str(error).split())
    return f"failed: {text}" if isinstance(error, RunError | DataError) else f"failed: {type(error).__name__}: {text}"


def _scores(workspace: Workspace, arrays: Arrays) -> Mapping[str, float]:
    """Score the encoder with `arrays` in place of its untrained tensors."""
    evaluation = build(workspace.config, "evaluation")
    if evaluation is None:
        return {}
    bundle.load(workspace.model, {**workspace.initial, **arrays})
    what = (cast(Encoder, workspace.model[bundle.BACKBONE]), workspace.splits, workspace.device)
    if isinstance(evaluation, ImageEvaluation) and CLASSIFIER in workspace.model:
        return evaluation(*what, workspace.model[CLASSIFIER])
    scores: Mapping[str, float] = evaluation(*what)
    return scores


def _neighbours(workspace: Workspace, arrays: Arrays) -> tuple[Answer, ...]:
    """Return test videos with their nearest training videos; none where a mechanism protects what these would show."""
    evaluation = build(workspace.config, "evaluation")
    if not isinstance(evaluation, VideoEvaluation) or workspace.mechanism is not None:
        return ()
    encoder = cast(Encoder, workspace.model[bundle.BACKBONE])
    bundle.load(workspace.model, workspace.initial)
    untrained = copy.deepcopy(encoder)
    bundle.load(workspace.model, {**workspace.initial, **arrays})
    return neighbours(encoder, untrained, workspace.splits, evaluation, workspace.device)


def _result(run: _Run, recorder: Recorder, status: str) -> RunResult:
    records, best, score = recorder.records, recorder.best, run.workspace.config.checkpoint.best
    clock = [record.virtual_seconds for record in records if record.virtual_seconds is not None]
    return RunResult(
        status=status,
        rounds_completed=len(records),
        model_sha256=sha256(recorder.arrays),
        scores=next((record.scores for record in reversed(records) if record.scores), {}),
        untrained_scores=recorder.untrained,
        privacy=run.account.statements() if run.account else None,
        clients=run.workspace.num_clients,
        failures=sum(len(record.failures) for record in records),
        seconds=run.seconds(),
        bytes_up=sum(record.bytes_up for record in records),
        bytes_down=sum(record.bytes_down for record in records),
        versions=versions(),
        stopped_early=recorder.stopped or (run.account.stopped if run.account else None),
        best={"round": best.round, score: best.scores[score]} if best and score else None,
        virtual_seconds=sum(clock) if clock else None,
        protection=_protection(run.workspace),
    )


def _held(workspace: Workspace) -> Held | None:
    """Return who holds what, as far as this server knows."""
    if workspace.parts is None:
        return None
    train, known = workspace.splits.train, workspace.known
    table, shared = counts(train, workspace.parts), overlap(train, workspace.parts).text
    if isinstance(workspace.deficiency, AllLabels):
        return Held(table, shared=shared)
    labelled = counts(train, [part[known.labelled[part]] for part in workspace.parts])
    return Held(table, labelled, counts(train, [known.server])[0] if len(known.server) else None, shared)


def _finish(run: _Run, recorder: Recorder, result: RunResult, answers: Sequence[Answer]) -> None:
    workspace, rundir = run.workspace, run.rundir
    rundir.write_model(recorder.arrays)
    if run.account and workspace.planting:
        rundir.write_text(PLANTED, json.dumps(run.account.evidence, indent=1, allow_nan=False) + "\n")
    classes = () if workspace.parts is None else workspace.splits.train.classes
    write_report(rundir, workspace.config.text, recorder.records, result, _held(workspace), classes, answers)
    rundir.write_result(result)
    if run.tracker is not None:
        run.tracker.finish(result)
    rundir.close()
