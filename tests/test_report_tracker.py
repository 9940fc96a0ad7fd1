import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from fedssl.errors import ConfigError
from fedssl.report.records import RoundRecord, RunResult
from fedssl.report.tracker import Wandb

RECORD = RoundRecord(2, {"R@1": 0.7}, {"loss": 1.5}, 0.9, 10, 20, 2.0, (0, 1), ())
RESULT = RunResult("completed", 2, "ab", {"R@1": 0.7}, {"R@1": 0.4}, None, 2, 0, 4.0, 20, 40, {})


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_an_init_that_raises_costs_one_warning_and_ends_the_tracking(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def broken(**settings: object) -> None:
        calls.append(settings)
        raise OSError("no network")

    monkeypatch.setattr(wandb, "init", broken)
    tracker = Wandb("fedssl", mode="offline")
    with caplog.at_level(logging.WARNING, logger="fedssl"):
        tracker.start({}, {})
        tracker.start({}, {})
        tracker.round(RECORD)
        tracker.finish(RESULT)
    assert len(calls) == 1
    assert [entry.getMessage() for entry in caplog.records] == [
        "tracking: wandb stopped (OSError: no network), the run goes on without it"
    ]


@pytest.mark.parametrize(("key", "mode"), [(None, "offline"), ("x" * 40, "online")])
def test_without_a_key_it_records_offline(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, key: str | None, mode: str
) -> None:
    seen: dict[str, object] = {}
    rows: list[tuple[int, dict[str, object]]] = []
    summary: dict[str, object] = {}
    run = SimpleNamespace(log=lambda row, step: rows.append((step, row)), summary=summary, finish=lambda: None)
    monkeypatch.setattr(wandb, "init", lambda **settings: seen.update(settings) or run)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    tracker = Wandb("fedssl")
    tracker.start({"run_dir": tmp_path}, {})
    tracker.round(RECORD)
    tracker.finish(RESULT)
    assert (seen["mode"], seen["dir"], seen["project"]) == (mode, str(tmp_path), "fedssl")
    assert len([entry for entry in caplog.records if "no wandb key" in entry.message]) == (mode == "offline")
    step, row = rows[0]
    assert step == 2
    assert row["score/R@1"] == 0.7
    assert row["train/loss"] == 1.5
    assert summary["status"] == "completed"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="allowed are online, offline"):
        Wandb("fedssl", mode="sometimes")
