"""A run that ended at any moment goes on to the bits of one that was never disturbed."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_runs import TINY, result

from fedssl import checkpoint
from fedssl.arrays import Arrays
from fedssl.errors import RunError
from fedssl.report.progress import Progress
from fedssl.report.records import RoundRecord
from fedssl.report.rundir import RunDirectory
from fedssl.wire import LocalUpdate
from simulate import main
from strategies.fedvssl import FedVSSL

RUN = [*TINY, "rounds=4", "evaluate_every=2"]
STRATEGIES = {
    "fedvssl": ["strategy.beta=1"],  # private heads
    "fedadam": ["strategy=fedadam"],  # a server optimizer
    "flower": ["strategy=flower"],  # the moments of Flower's FedAdam
    "availability": ["availability=stragglers", "availability.deadline_seconds=2", "quorum=1"],
}


def interrupt_after(last: int, monkeypatch: pytest.MonkeyPatch, method: str = "append_round") -> None:
    """Interrupt every run once `method` of the run directory was done for round `last`."""
    original = getattr(RunDirectory, method)

    def interrupting(self: RunDirectory, record: RoundRecord) -> None:
        original(self, record)
        if record.round == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, method, interrupting)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("last", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    name: str, last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*RUN, "engine=local", *STRATEGIES[name]]
    assert main([*arguments, f"run_dir={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        interrupt_after(last, patch)  # the round is written, its bundle is not
        assert main([*arguments, f"run_dir={tmp_path / 'cut'}", "checkpoint.every=1"]) == 3
    assert main([*arguments, f"run_dir={tmp_path / 'cut'}", "resume=auto"]) == 0
    whole, cut = result(tmp_path / "whole"), result(tmp_path / "cut")
    same = ("status", "rounds_completed", "model_sha256", "scores", "untrained_scores", "bytes_up", "virtual_seconds")
    assert [cut[key] for key in same] == [whole[key] for key in same]
    rounds = [json.loads(line)["round"] for line in (tmp_path / "cut" / "rounds.jsonl").read_text().splitlines()]
    assert rounds == [1, 2, 3, 4]


def test_a_run_goes_on_from_one_grid_to_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*RUN, "engine=local", f"run_dir={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        assert main([*RUN, "engine=ray", "engine.num_workers=2", f"run_dir={tmp_path / 'cut'}"]) == 3
    assert main([*RUN, "engine=local", f"run_dir={tmp_path / 'cut'}", "resume=auto"]) == 0
    assert result(tmp_path / "cut")["model_sha256"] == result(tmp_path / "whole")["model_sha256"]


def test_resume_begins_where_there_is_nothing_and_repeats_nothing_that_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*RUN, "engine=local", f"run_dir={tmp_path / 'run'}", "resume=auto"]
    assert main(arguments) == 0
    first = (tmp_path / "run" / "result.json").read_bytes()
    monkeypatch.setattr(Progress, "begin", lambda *_: pytest.fail("a completed run was begun again"))
    with caplog.at_level(logging.WARNING, logger="fedssl"):
        assert main(arguments) == 0
    assert "is completed already" in caplog.text
    assert (tmp_path / "run" / "result.json").read_bytes() == first


def test_another_configuration_or_other_data_is_refused_with_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*RUN, "engine=local", f"run_dir={tmp_path}", "resume=auto"]
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert main(arguments) == 3
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*arguments, "rounds=9", "strategy.alpha=0.5"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"resume=auto: {tmp_path} holds another run: ")
    assert "rounds: 4 -> 9" in line
    assert "strategy.alpha: 0.9 -> 0.5" in line
    bundle = tmp_path / checkpoint.FOLDER / "round-000001.pt"
    torch.save({**torch.load(bundle), "data": "other"}, bundle)
    before[bundle] = bundle.read_bytes()
    assert main(arguments) == 2
    assert "was run on other data" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["resume=auto"], "resume=auto: needs run_dir=DIR"),
        (["resume=auto", "run_dir=x", "checkpoint.every=null"], "resume=auto: needs checkpoint.every"),
        (["resume=yes"], "resume=yes: must be one of auto"),
        (["checkpoint.every=0"], "checkpoint.every=0: must be at least 1"),
        (["checkpoint.best=R@7"], "checkpoint.best=R@7: must be a score of the evaluation: R@1, kNN"),
        (["early_stop.score=loss"], "early_stop.score=loss: must be a score of the evaluation: R@1, kNN"),
        (["engine=ray", "engine.client_timeout_seconds=0"], "engine.client_timeout_seconds=0: must be above 0"),
        (
            ["engine=ray", "engine.schedule=random"],
            "engine.schedule=random: must be one of longest_first, by_partition",
        ),
    ],
)
def test_a_wrong_setting_gets_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "engine=local", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text in lines[0]


def test_a_directory_that_another_process_writes_to_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = RunDirectory.create(tmp_path, "{}")
    with pytest.raises(Exception, match="another process is writing to it"):
        RunDirectory.reopen(tmp_path, [])
    held.close()
    RunDirectory.reopen(tmp_path, []).close()


def test_the_last_bundles_and_the_best_are_kept_with_the_memories_they_need(tmp_path: Path) -> None:
    arguments = [*RUN, "engine=local", "rounds=6", "evaluate_every=1", f"run_dir={tmp_path}"]
    assert main([*arguments, "checkpoint.best=R@1", "checkpoint.keep=2"]) == 0
    folder = tmp_path / checkpoint.FOLDER
    best = result(tmp_path)["best"]
    assert checkpoint.rounds(folder) == sorted({5, 6, int(best["round"])})
    scores = [json.loads(line)["scores"]["R@1"] for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert best == {"round": scores.index(max(scores)) + 1, "R@1": max(scores)}
    needed = {item for number in checkpoint.rounds(folder) for item in checkpoint.load(folder, number).memories.items()}
    assert {path.name for path in (folder / "memories").iterdir()} == {f"{k}-{r}.memory" for k, r in needed}
    assert (tmp_path / "encoder_best.safetensors").exists()


@pytest.mark.parametrize("engine", ["local", "ray"])  # on Ray a round is scored while the next one is worked on
def test_early_stopping_ends_a_run_whose_score_no_longer_improves(engine: str, tmp_path: Path) -> None:
    stop = ["early_stop.score=R@1", "early_stop.patience=2", "early_stop.min_delta=1", "evaluate_every=1"]
    assert main([*RUN, f"engine={engine}", f"run_dir={tmp_path}", *stop]) == 0
    ended = result(tmp_path)
    assert (ended["status"], ended["rounds_completed"]) == ("completed", 3)  # nothing beats round 1 by more than 1
    assert ended["stopped_early"].startswith("R@1 is best in round 1 ")
    assert checkpoint.rounds(tmp_path / checkpoint.FOLDER)[-1] == 3
    (tmp_path / "result.json").unlink()  # as if killed before its end was written
    assert main([*RUN, "engine=local", f"run_dir={tmp_path}", *stop, "resume=auto"]) == 0
    assert result(tmp_path)["model_sha256"] == ended["model_sha256"]
    assert result(tmp_path)["rounds_completed"] == 3


def test_a_round_that_fails_after_the_last_one_that_counts_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = FedVSSL.merge

    def failing(
        self: FedVSSL, current: Arrays, updates: Iterator[LocalUpdate], round_number: int
    ) -> dict[str, np.ndarray]:
        if round_number == 4:  # worked on while round 3, which ends the run, is scored
            raise RunError("round 4 failed")
        return merge(self, current, updates, round_number)

    monkeypatch.setattr(FedVSSL, "merge", failing)
    stop = ["early_stop.score=R@1", "early_stop.patience=2", "early_stop.min_delta=1", "evaluate_every=1"]
    assert main([*RUN, "engine=ray", "engine.num_workers=1", f"run_dir={tmp_path}", *stop]) == 0
    assert (result(tmp_path)["status"], result(tmp_path)["rounds_completed"]) == ("completed", 3)


def test_memories_that_no_bundle_needs_are_deleted(tmp_path: Path) -> None:
    watched = ["evaluate_every=1", "checkpoint.every=4", "checkpoint.keep=1", "checkpoint.best=R@1"]
    assert main([*RUN, "engine=local", "strategy=fedvssl", f"run_dir={tmp_path}", *watched]) == 0
    folder = tmp_path / checkpoint.FOLDER
    needed = {item for number in checkpoint.rounds(folder) for item in checkpoint.load(folder, number).memories.items()}
    assert {path.name for path in (folder / "memories").iterdir()} == {f"{k}-{r}.memory" for k, r in needed}


def test_an_unreadable_bundle_is_named_and_the_one_before_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*RUN, "engine=local", f"run_dir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        assert main(arguments) == 3
    bundle = tmp_path / "run" / checkpoint.FOLDER / "round-000002.pt"
    bundle.write_bytes(bundle.read_bytes()[:100])
    assert main([*arguments, "resume=auto"]) == 2
    assert f"{bundle}: cannot be read" in capsys.readouterr().err
    bundle.unlink()
    assert main([*arguments, "resume=auto"]) == 0
    shutil.rmtree(tmp_path / "run")
