"""The ServerApp: one run from configuration to report, the same on every runtime."""

import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedssl.arrays import Arrays, sha256
from fedssl.config import RunConfig, build, load
from fedssl.data.partition import counts
from fedssl.errors import DataError, RunError
from fedssl.models import bundle
from fedssl.report.html import write_report
from fedssl.report.progress import Progress
from fedssl.report.records import RoundRecord, RunResult
from fedssl.report.rundir import RunDirectory
from fedssl.report.tracker import Tracker
from fedssl.report.versions import versions
from fedssl.workspace import Workspace, prepare
from strategies.base import Federated, Plan

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run on Flower's own runtime; the one key of the run configuration is "overrides"."""
    run(load(str(context.run_config["overrides"])), grid)


class _Recorder:
    """Writes each round down, shows it, and keeps what the end of the run needs."""

    def __init__(self, rundir: RunDirectory, progress: Progress, tracker: Tracker | None, initial: Arrays) -> None:
        self.records: list[RoundRecord] = []
        self.arrays = initial
        self._rundir = rundir
        self._progress = progress
        self._tracker = tracker

    def waiting(self, online: int, wanted: int) -> None:
        self._progress.waiting(online, wanted)

    def client_done(self, round_number: int, done: int, total: int) -> None:
        self._progress.client_done(round_number, done, total)

    def round_done(self, record: RoundRecord, arrays: Arrays) -> None:
        self.records.append(record)
        self.arrays = arrays
        self._rundir.append_round(record)
        self._progress.round_done(record)
        if self._tracker is not None:
            self._tracker.round(record)


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
    begun = time.monotonic()
    workspace = prepare(config)
    strategy: Federated = build(config, "strategy")
    initial = bundle.arrays(workspace.model, strategy.share)
    tracker: Tracker | None = build(config, "tracking")
    rundir = RunDirectory.create(run_directory(config), config.text)
    progress = Progress()
    recorder = _Recorder(rundir, progress, tracker, initial)
    if tracker is not None:
        tracker.start({"config": config.text, "run_dir": str(rundir.path)})
    status = "completed"
    untrained: Mapping[str, float] = {}
    failure: BaseException | None = None
    try:
        with progress:
            progress.begin(config.rounds)
            untrained = _scores(workspace, initial)
            _train(workspace, strategy, grid, recorder)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever ended the run, its rounds are kept
        status, failure = _reason(error), error
        rundir.write_text("error.txt", traceback.format_exc())
    result = _result(workspace, recorder, status, untrained, time.monotonic() - begun)
    _finish(rundir, workspace, recorder, result)
    if tracker is not None:
        tracker.finish(result)
    if failure is not None:
        raise RunError(f"{status}; run directory {rundir.path}") from failure
    return result, rundir.path


def _train(workspace: Workspace, strategy: Federated, grid: Grid, recorder: _Recorder) -> None:
    config = workspace.config
    plan = Plan(config.rounds, config.seed, workspace.num_clients, config.cohort, config.quorum)

    def evaluate(round_number: int, arrays: Arrays) -> Mapping[str, float]:
        due = round_number % config.evaluate_every == 0 or round_number == config.rounds
        return _scores(workspace, arrays) if due else {}

    strategy.start(grid, recorder.arrays, plan, evaluate, recorder, bundle.buffer_names(workspace.model))


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
    scores: Mapping[str, float] = evaluation(workspace.model["backbone"], workspace.splits, workspace.device)
    return scores


def _result(
    workspace: Workspace, recorder: _Recorder, status: str, untrained: Mapping[str, float], seconds: float
) -> RunResult:
    records = recorder.records
    return RunResult(
        status=status,
        rounds_completed=len(records),
        model_sha256=sha256(recorder.arrays),
        scores=next((record.scores for record in reversed(records) if record.scores), {}),
        untrained_scores=untrained,
        privacy=None,
        clients=workspace.num_clients,
        failures=sum(len(record.failures) for record in records),
        seconds=seconds,
        bytes_up=sum(record.bytes_up for record in records),
        bytes_down=sum(record.bytes_down for record in records),
        versions=versions(),
    )


def _finish(rundir: RunDirectory, workspace: Workspace, recorder: _Recorder, result: RunResult) -> None:
    backbone = {name: array for name, array in recorder.arrays.items() if name.startswith("backbone.")}
    rundir.write_encoder({name.removeprefix("backbone."): array for name, array in backbone.items()})
    parts = workspace.parts
    table = None if parts is None else counts(workspace.splits.train, parts)
    classes = () if parts is None else workspace.splits.train.classes
    write_report(rundir, workspace.config.text, recorder.records, result, table, classes)
    rundir.write_result(result)
