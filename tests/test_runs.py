"""Whole runs: the same bits everywhere, and one clear line for bad input."""

import json
from pathlib import Path

import pytest

from fedssl.config import CONF, build, groups, load
from simulate import main

TINY = [
    "data.num_train=24", "data.num_test=8", "data.num_classes=2", "partition.num_clients=4", "cohort=3", "rounds=2",
    "client.epochs=1", "client.batch_size=4", "evaluation.ks=[1]", "evaluation.num_clips=1", "model.width=4",
    "objective.hidden=16",
]  # fmt: skip


def result(path: Path) -> dict:
    return json.loads((path / "result.json").read_text())


def test_both_grids_and_any_number_of_workers_give_the_same_bits(tmp_path: Path) -> None:
    engines = [["engine=local"], ["engine=ray", "engine.num_workers=1"], ["engine=ray", "engine.num_workers=2"]]
    for index, engine in enumerate(engines):
        assert main([*TINY, *engine, f"run_dir={tmp_path / str(index)}"]) == 0
    results = [result(tmp_path / str(index)) for index in range(3)]
    assert len({one["model_sha256"] for one in results}) == 1
    assert results[0]["scores"] == results[1]["scores"] == results[2]["scores"]
    assert all(one["status"] == "completed" and one["failures"] == 0 for one in results)
    assert {path.name for path in (tmp_path / "0").iterdir()} == {
        "config.yaml", "rounds.jsonl", "encoder.safetensors", "report.html", "result.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["strateggy.alpha=1"], "strateggy.alpha=1: no such setting; allowed: "),
        (["strategy.alhpa=1"], "strategy.alhpa=1: no such setting; allowed: alpha, beta"),
        (["strategy=fedavgg"], "strategy=fedavgg: no such option; allowed: "),
        (["strategy.alpha=1.5"], "strategy.alpha must be between 0 and 1, got 1.5"),
        (["strategy.alpha=high"], "strategy.alpha=high: must be a number"),
        (["rounds=0"], "rounds=0: must be at least 1"),
        (["partition.num_clients=0"], "partition.num_clients must be at least 1, got 0"),
        (["partition.num_clients=99"], "must be at most the 24 training examples, got 99"),
        (["cohort=9"], "cohort=9: must be at most the 4 clients"),
        (["data=video_folder"], "data.root=???: must be given"),
        (["data=video_folder", "data.root=/nowhere"], "/nowhere"),
        (["strategy._target_=os.system"], "strategy._target_=os.system: must start with one of"),
    ],
)
def test_bad_input_gets_one_line_and_exit_2(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [] if any(word.startswith("data=") for word in arguments) else TINY
    assert main([*tiny, "engine=local", f"run_dir={tmp_path / 'run'}", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_directory_that_holds_a_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "engine=local", "rounds=1", f"run_dir={tmp_path}"]
    assert main(arguments) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(arguments) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_round_under_its_quorum_ends_the_run_with_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "engine=local", "client.optimizer.lr=1e30", f"run_dir={tmp_path / 'run'}"]
    assert main(arguments) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "round 1" in line
    assert "partition" in line
    assert str(tmp_path / "run") in line


@pytest.mark.parametrize("name", [f"{group}={name}" for group, names in groups().items() for name in names])
def test_every_yaml_composes_and_instantiates(name: str) -> None:
    root = ["data.root=/nowhere"] if name in ("data=video_folder", "data=weizmann") else []
    config = load([name, *root])
    for component in config.components:
        if component != "data" or not root:
            build(config, component)


def test_every_yaml_opens_by_saying_what_it_is() -> None:
    assert all(path.read_text().startswith("#") for path in CONF.rglob("*.yaml"))
