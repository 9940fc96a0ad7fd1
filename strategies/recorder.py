"""What hears of a run: it scores each round, writes it down, saves it, and says when to stop."""

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from fedssl.arrays import Arrays
from fedssl.checkpoint import Bundle
from fedssl.config import RunConfig
from fedssl.report.progress import Progress
from fedssl.report.records import Failure, RoundRecord
from fedssl.report.rundir import RunDirectory
from fedssl.report.tracker import Tracker
from fedssl.report.watch import best_round, reason_to_stop
from strategies.continuation import Saver

Scores = Mapping[str, float]


class Evaluator:
    """Scores a model at once, or in a thread while the clients of the next round work.

    Args:
        scores: Scores a model.
        config: Says which rounds are evaluated, and the cores an evaluation may use.
        in_background: False where the clients work in this process and would have to wait all the same.
    """

    def __init__(self, scores: Callable[[Arrays], Scores], config: RunConfig, *, in_background: bool) -> None:
        self._scores = scores
        self._config = config
        self._threads = ThreadPoolExecutor(1, initializer=self._set_threads) if in_background else None

    def _set_threads(self) -> None:
        torch.set_num_threads(self._config.engine.threads_per_client)

    def due(self, round_number: int) -> bool:
        """Return whether a round is evaluated."""
        return round_number % self._config.evaluate_every == 0 or round_number == self._config.rounds

    def start(self, arrays: Arrays) -> Future[Scores]:
        """Begin to score `arrays`; the result waits in the future."""
        if self._threads is not None:
            return self._threads.submit(self._scores, arrays)
        done: Future[Scores] = Future()
        done.set_result(self._scores(arrays))
        return done

    def close(self) -> None:
        """End the thread."""
        if self._threads is not None:
            self._threads.shutdown()


class Run(Protocol):
    """The parts of a run that a recorder writes with."""

    config: RunConfig
    fingerprint: str
    initial: Arrays
    saved: Bundle | None
    progress: Progress
    rundir: RunDirectory
    tracker: Tracker | None
    saver: Saver
    evaluator: Evaluator

    def strategy_state(self) -> Mapping[str, Any]:
        """Return what the server rule keeps."""
        ...

    def seconds(self) -> float:
        """Return the time since the run began."""
        ...


@dataclass(frozen=True, slots=True)
class _Open:
    """A round that is merged and whose scores may not be there yet, as it was before the next round began."""

    record: RoundRecord
    arrays: Arrays
    scores: Future[Scores] | None
    strategy: Mapping[str, Any]
    memories: Mapping[int, int]


class Recorder:
    """Writes each round down once its scores are there: at the latest when the next round is done."""

    def __init__(self, run: Run) -> None:
        self.records: list[RoundRecord] = list(run.saved.records) if run.saved else []
        self.arrays: Arrays = run.saved.arrays if run.saved else run.initial
        self.untrained: Scores = run.saved.untrained_scores if run.saved else {}
        self._run = run
        self._open: _Open | None = None
        self.stopped = self._reason_to_stop()

    def before_training(self, scores: Scores) -> None:
        """Keep what the clients say of the untrained model."""
        self.untrained = {**self.untrained, **scores}

    def waiting(self, online: int, wanted: int) -> None:
        """Show that clients are missing."""
        self._run.progress.waiting(online, wanted)

    def client_done(self, round_number: int, done: int, total: int) -> None:
        """Show how far a round is."""
        self._run.progress.client_done(round_number, done, total)

    def client_failed(self, failure: Failure, details: str) -> None:
        """Keep all that is known of a failed client in a file."""
        self._run.progress.client_failed(failure, self._run.rundir.write_failure(failure, details))

    def round_done(self, record: RoundRecord, arrays: Arrays) -> bool:
        """Take a round that is merged; one that is evaluated in the background is written when the next one is done."""
        if not self.close():
            return False  # the round before was the last; what came after it does not count
        due = self._run.evaluator.due(record.round)
        keeps = self._keeps(record.round, scored=due)
        self._open = _Open(
            record,
            arrays,
            self._run.evaluator.start(arrays) if due else None,
            copy.deepcopy(self._run.strategy_state()) if keeps else {},
            self._run.saver.save_memories() if keeps else {},
        )
        last = record.round == self._run.config.rounds
        return True if due and not last and self._open.scores and not self._open.scores.done() else self.close()

    def close(self) -> bool:
        """Write the round that is still open, if there is one, and return whether to go on."""
        if self._open is None:
            return self.stopped is None
        opened, self._open = self._open, None
        scores = opened.scores.result() if opened.scores else {}
        record = replace(opened.record, scores={**scores, **opened.record.scores})
        self.records.append(record)
        self.arrays = opened.arrays
        self._run.rundir.append_round(record)
        self._run.progress.round_done(record)
        if self._run.tracker is not None:
            self._run.tracker.round(record)
        self.stopped = self._reason_to_stop()
        self._save(opened, record.round if self.stopped else self._run.config.rounds)
        return self.stopped is None

    def _reason_to_stop(self) -> str | None:
        stop = self._run.config.early_stop
        if stop.score is None:
            return None
        return reason_to_stop(self.records, stop.score, stop.best_is, stop.patience, stop.min_delta)

    @property
    def best(self) -> RoundRecord | None:
        """The best round by the score that checkpoints watch."""
        setting = self._run.config.checkpoint
        return None if setting.best is None else best_round(self.records, setting.best, setting.best_is)

    def _keeps(self, number: int, *, scored: bool) -> bool:
        """Return whether a round may get a bundle, before its scores say so."""
        config = self._run.config
        watched = scored and (config.checkpoint.best is not None or config.early_stop.score is not None)
        return config.checkpoint.every is not None and (watched or self._run.saver.due(number, config.rounds, None))

    def _save(self, opened: _Open, last: int) -> None:
        run, number = self._run, len(self.records)
        best = self.best.round if self.best else None
        if best == number:
            run.rundir.write_model(self.arrays, best=True)
        if run.saver.due(number, last, best):
            bundle = Bundle(
                config=run.config.text,
                data=run.fingerprint,
                records=tuple(self.records),
                arrays=self.arrays,
                strategy=opened.strategy,
                memories=dict(opened.memories),
                tracker=run.tracker.position() if run.tracker else {},
                untrained_scores=self.untrained,
                seconds=run.seconds(),
            )
            run.saver.save(bundle, best)
