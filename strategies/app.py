"""The ServerApp: one run from configuration to report, the same on every runtime."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedssl.arrays import Arrays, sha256
from fedssl.config import RunConfig, build, load
from fedssl.data.partition import counts
from fedssl.models import bundle
from fedssl.report.html import write_report
from fedssl.report.progress import Progress
from fedssl.report.records import RoundRecord, RunResult
from fedssl.report.rundir import RunDirectory
from fedssl.report.tracker import Tracker
from fedssl.report.versions import versions
from fedssl.workspace import Workspace, open_workspace
from strategies.base import Federated, Plan

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run on Flower's own runtime; the one key of the run configuration is "overrides"."""
    run(load(str(context.run_config["overrides"])), grid)


class _Recorder:
    """Writes each round down, shows it, and keeps the records for the report."""

    def __init__(self, rundir: RunDirectory, progress: Progress, tracker: Tracker | None) -> None:
        self.records: list[RoundRecord] = []
        self._rundir = rundir
        self._progress = progress
        self._tracker = tracker

    def client_done(self, round_number: int, done: int, total: int) -> None:
        self._progress.client_done(round_number, done, total)

    def round_done(self, record: RoundRecord) -> None:
        self.records.append(record)
        self._rundir.append_round(record)
        self._progress.round_done(record)
        if self._tracker is not None:
            self._tracker.round(record)


def run_directory(config: RunConfig) -> Path:
    """Return the directory of a run: the one asked for, or a new one under outputs/."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path("outputs") / datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S-%f")


def run(config: RunConfig, grid: Grid, path: Path | None = None) -> tuple[RunResult, Path]:
    """Run every round on `grid` and leave the run directory behind.

    Raises:
        ConfigError: A setting is wrong.
        RunError: A round could not be completed.
    """
    begun = time.monotonic()
    workspace = open_workspace(config)
    strategy: Federated = build(config, "strategy")
    initial = bundle.arrays(workspace.model, strategy.share)
    rundir = RunDirectory.create(path or run_directory(config), config.text)
    tracker: Tracker | None = build(config, "tracking")
    if tracker is not None:
        tracker.start({"config": config.text, "run_dir": str(rundir.path)})
    untrained = _scores(workspace, initial)
    plan = Plan(config.rounds, config.seed, len(workspace.parts), config.cohort, config.quorum)

    def evaluate(round_number: int, arrays: Arrays) -> Mapping[str, float]:
        due = round_number % config.evaluate_every == 0 or round_number == config.rounds
        return _scores(workspace, arrays) if due else {}

    with Progress() as progress:
        progress.begin(config.rounds)
        recorder = _Recorder(rundir, progress, tracker)
        final = strategy.start(grid, initial, plan, evaluate, recorder, bundle.buffer_names(workspace.model))
    result = _result(recorder.records, final, untrained, time.monotonic() - begun)
    _finish(rundir, workspace, recorder.records, result, final)
    if tracker is not None:
        tracker.finish(result)
    return result, rundir.path


def _scores(workspace: Workspace, arrays: Arrays) -> Mapping[str, float]:
    """Score the encoder with `arrays` in place of its untrained tensors."""
    bundle.load(workspace.model, {**workspace.initial, **arrays})
    evaluation = build(workspace.config, "evaluation")
    scores: Mapping[str, float] = evaluation(workspace.model["backbone"], workspace.splits, workspace.device)
    return scores


def _result(records: list[RoundRecord], final: Arrays, untrained: Mapping[str, float], seconds: float) -> RunResult:
    return RunResult(
        status="completed",
        rounds_completed=len(records),
        model_sha256=sha256(final),
        scores=records[-1].scores,
        untrained_scores=untrained,
        privacy=None,
        clients=len({client for record in records for client in record.clients}),
        failures=sum(len(record.failures) for record in records),
        seconds=seconds,
        bytes_up=sum(record.bytes_up for record in records),
        bytes_down=sum(record.bytes_down for record in records),
        versions=versions(),
    )


def _finish(
    rundir: RunDirectory, workspace: Workspace, records: list[RoundRecord], result: RunResult, final: Arrays
) -> None:
    encoder = {
        name.removeprefix("backbone."): array for name, array in final.items() if name.startswith("backbone.")
    }
    rundir.write_encoder(encoder)
    train = workspace.splits.train
    write_report(rundir, workspace.config.text, records, result, counts(train, workspace.parts), train.classes)
    rundir.write_result(result)
