"""Clients score the model themselves: on examples they never train on, with private tensors of their own."""

from pathlib import Path

import numpy as np
import pytest
from test_runs import TINY, result

from fedssl.compose import load
from fedssl.data.partition import partition
from fedssl.evaluation.personal import PersonalEvaluation
from fedssl.prepare import prepare
from simulate import main

RUN = [*TINY, "data.num_train=48", "client_evaluation=personal", "client_evaluation.clip_frames=8", "evaluation=none"]
SETTINGS = [word for word in RUN if not word.startswith("evaluation.")]


def test_a_client_never_trains_on_what_it_is_scored_on() -> None:
    workspace = prepare(load(SETTINGS))
    for client, part in enumerate(partition(workspace.splits.train, workspace.partitioner, 0)):
        train, held_out = workspace.indices(client), workspace.held_out(client)
        assert sorted([*train, *held_out]) == part.tolist()
        assert 0 < len(held_out) < len(train)


def test_held_out_examples_are_told_by_their_neighbours() -> None:
    evaluation = PersonalEvaluation(held_out=0.25, height=8, width=8, knn_k=1)
    train, held_out = evaluation.split(np.arange(100, 108), np.array([0] * 4 + [1] * 4), np.random.default_rng(0))
    assert (len(train), len(held_out)) == (6, 2)
    assert min(train) >= 100


def test_both_grids_give_the_same_scores_of_clients(tmp_path: Path) -> None:
    for engine in ("local", "ray"):
        assert main([*SETTINGS, f"engine={engine}", f"run_dir={tmp_path / engine}", "evaluate_every=1"]) == 0
    local, ray = result(tmp_path / "local"), result(tmp_path / "ray")
    assert list(local["scores"]) == ["kNN, clients", "kNN, worst client"]
    assert local["scores"]["kNN, worst client"] <= local["scores"]["kNN, clients"]
    for key in ("scores", "untrained_scores", "model_sha256"):
        assert local[key] == ray[key]


def test_a_client_that_cannot_hold_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [word for word in SETTINGS if not word.startswith("data.num_train")]
    words = ["data.num_train=8", "partition.num_clients=8", "engine=local", f"run_dir={tmp_path / 'run'}"]
    assert main([*few, *words]) == 2
    assert "client_evaluation: partition 0 has no class with two examples" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_norms_that_stay_with_clients_are_not_sent(tmp_path: Path) -> None:
    words = [*SETTINGS, "engine=local", "strategy=fedavg"]  # SETTINGS has evaluation=none
    assert main([*words, f"run_dir={tmp_path / 'share'}"]) == 0
    assert main([*words, "batch_norm=local", f"run_dir={tmp_path / 'local'}"]) == 0
    assert main([*words, "batch_norm=frozen", f"run_dir={tmp_path / 'frozen'}"]) == 0
    shared, local, frozen = (result(tmp_path / name) for name in ("share", "local", "frozen"))
    assert local["bytes_up"] < shared["bytes_up"] == frozen["bytes_up"]
    assert len({one["model_sha256"] for one in (shared, local, frozen)}) == 3
