"""Whole runs: the same bits everywhere, and one clear line for bad input and for a failed run."""

import json
from pathlib import Path

import pytest
from videos import write_video

from fedssl.compose import CONF, groups, load
from fedssl.config import build
from fedssl.report.progress import Progress
from fedssl.report.records import RoundRecord
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
        "config.yaml", "rounds.jsonl", "encoder.safetensors", "report.html", "result.json", "checkpoints",
        "neighbours.png",
    }  # fmt: skip
    assert len({(tmp_path / str(index) / "neighbours.png").read_bytes() for index in range(3)}) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["strateggy.alpha=1"], "strateggy.alpha=1: no such setting; allowed: "),
        (["strategy.alhpa=1"], "strategy.alhpa=1: no such setting; allowed: alpha, beta"),
        (["strategy=fedavgg"], "strategy=fedavgg: no such option; allowed: "),
        (["strategy.alpha=1=2"], "strategy.alpha=1=2: not of the form key=value"),
        (["strategy.alpha=1.5"], "strategy.alpha=1.5: must be between 0 and 1"),
        (["objective=cvrl", "client.batch_size=1"], "client.batch_size=1: must be at least 2, the objective's"),
        (["objective=e2mc", "objective@objective.host=rotnet", "client.batch_size=16"], "objective.host="),
        (["batch_norm=local"], "batch_norm=local: needs evaluation=none"),
        (["augmentation=weak", "augmentation.full.flip=2"], "augmentation.full.flip=2: must be "),
        (["strategy.alpha=high"], "strategy.alpha=high: must be a number"),
        (["rounds=0"], "rounds=0: must be at least 1"),
        (["partition.num_clients=0"], "partition.num_clients=0: must be at least 1"),
        (["partition.num_clients=99"], "partition.num_clients=99: must be at most the 24 training examples"),
        (["cohort=9"], "cohort=9: must be at most the 4 clients"),
        (["quorum=4"], "quorum=4: must be at most the 3 clients of a round"),
        (["partition=on_device", "cohort=null"], "partition=on_device: is for devices; choose another to simulate"),
        (["engine.num_workers=2"], "engine.num_workers=2: no such setting; allowed: "),
        (["data=video_folder"], "data.root=???: must be given"),
        (["data=video_folder", "data.root=/nowhere"], "/nowhere: no such folder"),
        (
            ["data=video_folder", f"data.root={CONF}"],
            "conf: has no videos, neither in metadata.csv nor in class folders",
        ),
        (["tracking=wandb", "tracking.mode=of"], "tracking.mode=of: must be one of online, offline"),
        (["strategy._target_=os.system"], "strategy._target_=os.system: must start with one of"),
    ],
)
def test_bad_input_gets_one_line_and_exit_2(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = [word.split("=")[0] for word in arguments if word.split("=")[0] in groups()]
    tiny = [word for word in TINY if word.split(".")[0] not in replaced]
    assert main([*tiny, "engine=local", f"run_dir={tmp_path / 'run'}", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_directory_that_holds_a_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "engine=local", "rounds=1", f"run_dir={tmp_path}"]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(arguments) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def failed_run(arguments: list[str], run_dir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run, check what a failed run leaves behind, and return its last line."""
    assert main(["engine=local", f"run_dir={run_dir}", *arguments]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("failed: ")
    assert line.endswith(f"; run directory {run_dir}")
    assert line.startswith(result(run_dir)["status"])
    assert "Traceback" in (run_dir / "error.txt").read_text()
    assert (run_dir / "report.html").exists()
    return line


def test_a_round_under_its_quorum_ends_the_run_with_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failed_run([*TINY, "optimizer.lr=1e30"], tmp_path / "run", capsys)
    assert line.startswith("failed: round 1, partition ")
    assert "3 of 3 clients failed" in line
    assert result(tmp_path / "run")["rounds_completed"] == 0


def videos(folder: Path, frames: int = 24) -> list[str]:
    for label, brightness in (("dark", 40), ("light", 200)):
        for number in range(6):
            write_video(folder / label / f"{number}.mp4", brightness, frames)
    settings = ["data=video_folder", f"data.root={folder}", "partition.num_clients=2", "cohort=null", "rounds=1"]
    return [*settings, "evaluation.ks=[1]", "model.width=4", "objective.hidden=16"]


def test_a_corrupt_video_is_named_and_skipped_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = videos(tmp_path / "videos")
    corrupt = tmp_path / "videos" / "dark" / "3.mp4"
    corrupt.write_bytes(corrupt.read_bytes()[:300])
    assert f"{corrupt}: cannot be read as a video" in failed_run(arguments, tmp_path / "failed", capsys)
    skipping = [*arguments, "engine=local", "data.skip_unreadable=true", f"run_dir={tmp_path / 'run'}"]
    assert main(skipping) == 0
    assert result(tmp_path / "run")["status"] == "completed"


def test_videos_too_short_for_the_pretext_fail_by_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failed_run(videos(tmp_path / "videos", frames=4), tmp_path / "run", capsys)
    assert "has 4 frames, the objective needs 6" in line


def test_an_interrupted_run_keeps_the_rounds_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Progress, record: RoundRecord) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "round_done", interrupt)
    assert main([*TINY, "engine=local", f"run_dir={tmp_path / 'run'}"]) == 3
    assert capsys.readouterr().err == f"interrupted; run directory {tmp_path / 'run'}\n"
    assert result(tmp_path / "run")["rounds_completed"] == 1


def test_a_server_without_data_trains_and_scores_nothing(tmp_path: Path) -> None:
    assert main([*(word for word in TINY if "evaluation" not in word), "engine=local", "evaluation=none",
                 f"run_dir={tmp_path / 'run'}"]) == 0  # fmt: skip
    assert result(tmp_path / "run")["scores"] == {}


@pytest.mark.parametrize("name", [f"{group}={name}" for group, names in groups().items() for name in names])
def test_every_yaml_composes_and_instantiates(name: str, tmp_path: Path) -> None:
    words = [name]
    if name.startswith("rule="):  # a part of some objectives
        words = ["objective=fixmatch", name.replace("=", "@objective.rule=")]
    if name.startswith("sweep="):  # the runs that it is made of are composed by themselves
        return
    if name.startswith("privacy="):
        words += [] if name == "privacy=none" else ["privacy.noise_multiplier=1"]
    if name.startswith("labels=twinsight"):
        words.append("partition.num_clients=10")
    if name == "partition=k400_paper_lists":
        words.append(f"partition.folder={tmp_path}")
    config = load(words)
    for component, spec in config.components.items():
        if component != "data" or "root" not in spec:  # files that only the user has, or that are downloaded
            build(config, component)


def test_every_yaml_opens_by_saying_what_it_is() -> None:
    assert all(path.read_text().startswith("#") for path in CONF.rglob("*.yaml"))
