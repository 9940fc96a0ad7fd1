"""The ServerApp: one run from configuration to report, the same on every runtime."""

import logging
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedssl.arrays import Arrays, sha256
from fedssl.checkpoint import Bundle
from fedssl.config import RunConfig, build, load
from fedssl.data.partition import counts
from fedssl.errors import DataError, RunError
from fedssl.models import bundle
from fedssl.report.html import write_report
from fedssl.report.progress import Progress
from fedssl.report.records import Failure, RoundRecord, RunResult
from fedssl.report.rundir import BEST_ENCODER, CONFIG, ERROR, RunDirectory
from fedssl.report.tracker import Tracker
from fedssl.report.versions import versions
from fedssl.report.watch import best_round, reason_to_stop
from fedssl.workspace import Workspace, prepare
from strategies.base import Federated, Plan
from strategies.continuation import Saver, find_bundle

LOGGER = logging.getLogger("fedssl")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run on Flower's own runtime; the one key of the run configuration is "overrides"."""
    run(load(str(context.run_config["overrides"])), grid)


class _Recorder:
    """Writes each round down, shows it, saves it, and keeps what the end of the run needs."""

    def __init__(self, run: "_Run") -> None:
        self.records: list[RoundRecord] = list(run.saved.records) if run.saved else []
        self.arrays: Arrays = run.saved.arrays if run.saved else run.initial
        self.untrained: Mapping[str, float] = run.saved.untrained_scores if run.saved else {}
        self._run = run
        self.stopped = self._reason_to_stop()

    def waiting(self, online: int, wanted: int) -> None:
        self._run.progress.waiting(online, wanted)

    def client_done(self, round_number: int, done: int, total: int) -> None:
        self._run.progress.client_done(round_number, done, total)

    def client_failed(self, failure: Failure, details: str) -> None:
        self._run.progress.client_failed(failure, self._run.rundir.write_failure(failure, details))

    def round_done(self, record: RoundRecord, arrays: Arrays) -> bool:
        config = self._run.workspace.config
        self.records.append(record)
        self.arrays = arrays
        self._run.rundir.append_round(record)
        self._run.progress.round_done(record)
        if self._run.tracker is not None:
            self._run.tracker.round(record)
        self.stopped = self._reason_to_stop()
        self._save(record.round if self.stopped else config.rounds)
        return self.stopped is None

    def _reason_to_stop(self) -> str | None:
        stop = self._run.workspace.config.early_stop
        if stop.score is None:
            return None
        return reason_to_stop(self.records, stop.score, stop.best_is, stop.patience, stop.min_delta)

    @property
    def best(self) -> RoundRecord | None:
        """The best round by the score that checkpoints watch."""
        setting = self._run.workspace.config.checkpoint
        return None if setting.best is None else best_round(self.records, setting.best, setting.best_is)

    def _save(self, last: int) -> None:
        run, number = self._run, len(self.records)
        best = self.best.round if self.best else None
        if best == number:
            run.rundir.write_encoder(_backbone(self.arrays), BEST_ENCODER)
        if run.saver.due(number, last, best):
            bundle = Bundle(
                config=run.workspace.config.text,
                data=run.workspace.fingerprint,
                records=tuple(self.records),
                arrays=self.arrays,
                strategy=run.strategy.state(),
                memories=run.saver.save_memories(),
                tracker=run.tracker.position() if run.tracker else {},
                untrained_scores=self.untrained,
                seconds=run.seconds(),
            )
            run.saver.save(bundle, best)


class _Run:
    """What a run is made of; going on with one needs its last bundle beside."""

    def __init__(self, config: RunConfig, grid: Grid) -> None:
        self._begun = time.monotonic()
        self.workspace = prepare(config)
        self.strategy: Federated = build(config, "strategy")
        self.initial = self.workspace.shared(self.strategy.share)
        self.tracker: Tracker | None = build(config, "tracking")
        self.progress = Progress()
        path = run_directory(config)
        goes_on = config.resume is not None and (path / CONFIG).exists()
        self.saved = find_bundle(config, path, self.workspace.fingerprint) if goes_on else None
        self.saver = Saver(path, config.checkpoint, grid)
        if self.saved is not None:
            self.saver.restore(self.saved)
        records = self.saved.records if self.saved else ()
        self.rundir = RunDirectory.reopen(path, records) if goes_on else RunDirectory.create(path, config.text)

    def seconds(self) -> float:
        """Wall-clock time, that of earlier processes included."""
        return (self.saved.seconds if self.saved else 0.0) + time.monotonic() - self._begun


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
    recorder = _Recorder(run)
    if run.tracker is not None:
        position = run.saved.tracker if run.saved else {}
        run.tracker.start({"config": config.text, "run_dir": str(run.rundir.path)}, position)
    status = "completed"
    failure: BaseException | None = None
    try:
        with run.progress:
            run.progress.begin(config.rounds, len(recorder.records))
            if run.saved is None:
                recorder.untrained = _scores(run.workspace, run.initial)
            if recorder.stopped is None:  # a process that was killed after it stopped early has nothing left to train
                _train(run, recorder, grid)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever ended the run, its rounds are kept
        status, failure = _reason(error), error
        run.rundir.write_text(ERROR, traceback.format_exc())
    result = _result(run, recorder, status)
    _finish(run, recorder, result)
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


def _train(run: _Run, recorder: _Recorder, grid: Grid) -> None:
    workspace, config = run.workspace, run.workspace.config
    plan = Plan(
        rounds=config.rounds,
        seed=config.seed,
        num_clients=workspace.num_clients,
        cohort=config.cohort,
        quorum=config.quorum,
        num_examples=None if workspace.parts is None else lambda partition: len(workspace.indices(partition)),
        availability=build(config, "availability"),
        history=tuple(recorder.records),
        state=run.saved.strategy if run.saved else {},
    )

    def evaluate(round_number: int, arrays: Arrays) -> Mapping[str, float]:
        due = round_number % config.evaluate_every == 0 or round_number == config.rounds
        return _scores(workspace, arrays) if due else {}

    run.strategy.start(grid, recorder.arrays, plan, evaluate, recorder, bundle.buffer_names(workspace.model))


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


def _result(run: _Run, recorder: _Recorder, status: str) -> RunResult:
    records, best, score = recorder.records, recorder.best, run.workspace.config.checkpoint.best
    clock = [record.virtual_seconds for record in records if record.virtual_seconds is not None]
    return RunResult(
        status=status,
        rounds_completed=len(records),
        model_sha256=sha256(recorder.arrays),
        scores=next((record.scores for record in reversed(records) if record.scores), {}),
        untrained_scores=recorder.untrained,
        privacy=None,
        clients=run.workspace.num_clients,
        failures=sum(len(record.failures) for record in records),
        seconds=run.seconds(),
        bytes_up=sum(record.bytes_up for record in records),
        bytes_down=sum(record.bytes_down for record in records),
        versions=versions(),
        stopped_early=recorder.stopped,
        best={"round": best.round, score: best.scores[score]} if best and score else None,
        virtual_seconds=sum(clock) if clock else None,
    )


def _backbone(arrays: Arrays) -> Arrays:
    prefix = f"{bundle.BACKBONE}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _finish(run: _Run, recorder: _Recorder, result: RunResult) -> None:
    workspace, rundir = run.workspace, run.rundir
    rundir.write_encoder(_backbone(recorder.arrays))
    parts = workspace.parts
    table = None if parts is None else counts(workspace.splits.train, parts)
    classes = () if parts is None else workspace.splits.train.classes
    write_report(rundir, workspace.config.text, recorder.records, result, table, classes)
    rundir.write_result(result)
    if run.tracker is not None:
        run.tracker.finish(result)
    rundir.close()
