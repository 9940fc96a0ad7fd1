"""FedU and FedEMA: what a client begins a round with, by hand."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import test_resume
from quadratics import sgd, task_of
from test_runs import TINY, result
from torch import nn

from clients.exchanged import divergence, exchanged
from clients.fedema import FedEMA
from clients.fedu import FedU
from fedssl.arrays import Arrays
from fedssl.memory import Memory
from fedssl.models import bundle
from fedssl.objectives.teacher import make_teacher
from simulate import main

BYOL = ["objective=byol", "strategy=fedavg", "data.num_frames=8"]


def model(value: float) -> nn.ModuleDict:
    """Return a backbone, a predictor and a teacher, all of `value`."""
    backbone = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    groups = {"backbone": backbone, "predictor": nn.Linear(2, 1), "teacher": make_teacher(backbone=backbone)}
    filled = nn.ModuleDict(groups)
    bundle.load(filled, {name: np.full_like(array, value) for name, array in bundle.arrays(filled, None).items()})
    return filled


def shared(value: float) -> Arrays:
    return bundle.arrays(model(value), ["backbone", "predictor"])


INITIAL = bundle.arrays(model(-1.0), None)
EMA = FedEMA(sgd(0.1), tau=0.5)
CODE = FedEMA(sgd(0.1), tau=0.5, reference_compat=True)


def took_part(
    procedure: FedEMA | FedU, begun: float, ended: float, number: int, memory: Memory | None = None
) -> Memory:
    """Return what a client remembers that was sent `begun` in a round, and trained its model to `ended`."""
    kept = procedure.end(model(ended), memory, task_of(shared(begun), number), {}).kept
    return Memory(bundle.arrays(model(ended), ["teacher"]), kept)


def begins(procedure: FedEMA | FedU, memory: Memory | None, came: float, number: int) -> Mapping[str, float]:
    """Return the first value of each tensor that training begins with, when `came` is sent in a round."""
    arrays = procedure.begin(INITIAL, memory, task_of(shared(came), number))
    assert all(
        arrays[name].shape == array.shape and arrays[name].dtype == array.dtype for name, array in INITIAL.items()
    )
    assert all(len(np.unique(array)) == 1 for array in arrays.values())
    return {name: float(array.flat[0]) for name, array in arrays.items()}


PARAMETERS = list(exchanged(model(0.0), task_of(shared(0.0))))
WEIGHT = "backbone.0.weight"


def test_divergence_is_the_mean_distance_of_the_backbones_weights() -> None:
    first = {
        "backbone.a": np.zeros((2, 2), np.float32),
        "backbone.b": np.zeros((1, 1, 2), np.float32),
        "backbone.bias": np.zeros(2, np.float32),
        "predictor.a": np.zeros((2, 2), np.float32),
    }
    second = {name: array + 100 for name, array in first.items()}
    second["backbone.a"] = np.array([[1, 1], [1, 1]], np.float32)
    second["backbone.b"] = np.array([[[3, 4]]], np.float32)
    assert divergence(first, second) == pytest.approx((2 + 5) / 2, abs=1e-9)
    assert divergence(first, first) == 0
    with pytest.raises(ValueError, match="backbone must be exchanged"):
        divergence({"backbone.bias": np.zeros(2)}, {"backbone.bias": np.zeros(2)})


def test_parameters_that_are_trained_and_came_are_exchanged() -> None:
    assert sorted(PARAMETERS) == [
        "backbone.0.bias", "backbone.0.weight", "backbone.1.bias", "backbone.1.weight", "predictor.bias",
        "predictor.weight",
    ]  # fmt: skip
    everything = task_of(bundle.arrays(model(0.0), None))
    assert sorted(exchanged(model(0.0), everything)) == sorted(PARAMETERS)  # nothing trains a teacher


@pytest.mark.parametrize("procedure", [EMA, CODE, FedU(sgd(0.1), threshold=0.0)])
def test_the_first_participation_begins_with_the_global_model(procedure: FedEMA | FedU) -> None:
    begun = begins(procedure, None, came=2.0, number=5)
    assert {name for name, value in begun.items() if value == 2.0} == set(shared(0.0))
    assert {value for name, value in begun.items() if name.startswith("teacher")} == {-1.0}


def test_the_first_mix_takes_tau_of_the_local_model_and_every_buffer_from_the_global_one() -> None:
    memory = took_part(EMA, begun=0.0, ended=2.0, number=1)
    begun = begins(EMA, memory, came=6.0, number=2)
    # local 2 and global 6 are 4 * sqrt(4 elements) = 8 apart: scale 0.5 / 8, share 0.5, 0.5 * 2 + 0.5 * 6 = 4
    assert {begun[name] for name in PARAMETERS} == {4.0}
    assert {begun[name] for name in shared(0.0) if name not in PARAMETERS} == {6.0}  # running statistics and counters
    assert {value for name, value in begun.items() if name.startswith("teacher")} == {2.0}


def test_the_scale_is_frozen_and_the_share_follows_the_divergence_up_to_1() -> None:
    memory = took_part(EMA, begun=0.0, ended=2.0, number=1)
    memory = took_part(EMA, begun=6.0, ended=3.0, number=2, memory=memory)  # scale 0.5 / 8
    assert float(memory.extras["record"]["scale"]) == pytest.approx(0.0625, abs=1e-9)
    assert begins(EMA, memory, came=5.0, number=3)[WEIGHT] == 0.25 * 3 + 0.75 * 5  # 4 apart
    assert begins(EMA, memory, came=3.0, number=3)[WEIGHT] == 3.0  # 0 apart
    memory = took_part(EMA, begun=5.0, ended=9.0, number=3, memory=memory)
    assert float(memory.extras["record"]["scale"]) == pytest.approx(0.0625, abs=1e-9)
    assert begins(EMA, memory, came=1.0, number=4)[WEIGHT] == 9.0  # 16 apart: share 1 is the local model
    assert begins(EMA, memory, came=-50.0, number=4)[WEIGHT] == 9.0  # and no more than that


def test_no_divergence_is_the_global_model_exactly_and_a_share_of_1_the_local_one() -> None:
    arrays = {name: np.random.default_rng(0).normal(size=array.shape) for name, array in shared(0.0).items()}
    arrays = {name: np.asarray(array, shared(0.0)[name].dtype) for name, array in arrays.items()}
    trained = model(0.0)
    bundle.load(trained, arrays)
    kept = EMA.end(trained, None, task_of(shared(1.0), 1), {}).kept
    came = {name: np.array(array) for name, array in arrays.items()}
    came["backbone.1.running_mean"] += 1  # no trained parameter differs
    begun = EMA.begin(INITIAL, Memory({}, kept), task_of(came, 2))
    assert all(np.array_equal(begun[name], came[name]) for name in came)
    sure = FedEMA(sgd(0.1), tau=1.0)
    begun = sure.begin(INITIAL, Memory({}, kept), task_of(shared(7.0), 2))
    assert all(np.array_equal(begun[name], arrays[name]) for name in PARAMETERS)


def test_a_client_that_missed_the_round_before_begins_with_the_global_model_and_keeps_its_teacher() -> None:
    memory = took_part(EMA, begun=0.0, ended=2.0, number=1)
    begun = begins(EMA, memory, came=6.0, number=3)
    assert {begun[name] for name in shared(0.0)} == {6.0}
    assert begun["teacher.backbone.0.weight"] == 2.0


def test_the_authors_code_measures_the_last_training_and_replaces_the_teacher_after_a_missed_round() -> None:
    memory = took_part(CODE, begun=0.0, ended=2.0, number=1)  # 2 * sqrt(4) = 4 far: scale 0.5 / 4
    assert float(memory.extras["record"]["scale"]) == pytest.approx(0.125, abs=1e-9)
    assert begins(CODE, memory, came=60.0, number=2)[WEIGHT] == 0.5 * 2 + 0.5 * 60
    missed = begins(CODE, memory, came=6.0, number=3)
    assert {missed[name] for name in shared(0.0)} == {6.0}
    assert {value for name, value in missed.items() if name.startswith("teacher")} == {6.0}
    memory = took_part(CODE, begun=6.0, ended=5.0, number=3, memory=memory)  # from 6 to 5: 2 far, share 0.25
    assert begins(CODE, memory, came=1.0, number=4)[WEIGHT] == 0.25 * 5 + 0.75 * 1
    memory = took_part(CODE, begun=1.0, ended=4.0, number=4, memory=memory)  # it began at 2, so from 2 to 4
    assert float(memory.extras["record"]["drift"]) == pytest.approx(4, abs=1e-9)


def test_fedu_keeps_the_local_predictor_from_the_threshold_on() -> None:
    for threshold, predictor in ((3.9, 2.0), (4.0, 2.0), (4.1, 6.0)):
        procedure = FedU(sgd(0.1), threshold=threshold)
        memory = took_part(procedure, begun=0.0, ended=2.0, number=1)  # 2 * sqrt(4) = 4 far
        begun = begins(procedure, memory, came=6.0, number=9)
        assert begun["predictor.weight"] == begun["predictor.bias"] == predictor
        assert {value for name, value in begun.items() if name.startswith("backbone")} == {6.0}
        assert begun["teacher.backbone.0.weight"] == 2.0


def test_what_training_led_to_is_reported() -> None:
    metrics = EMA.end(model(2.0), None, task_of(shared(0.0), 1), {"loss": 1.0}).metrics
    assert metrics == {"loss": 1.0, "drift": pytest.approx(4.0), "local-share": 0.0}
    assert FedU(sgd(0.1)).end(model(2.0), None, task_of(shared(0.0), 1), {}).metrics == {"drift": pytest.approx(4.0)}


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tau must be between 0 and 1, got 1\.5"):
        FedEMA(sgd(0.1), tau=1.5)
    with pytest.raises(ValueError, match="threshold must be 0 or more"):
        FedU(sgd(0.1), threshold=-1.0)


def test_fedu_asks_for_a_predictor_that_is_exchanged() -> None:
    with pytest.raises(ValueError, match="client=fedu needs an objective with a predictor"):
        FedU(sgd(0.1)).begin(INITIAL, None, task_of(bundle.arrays(model(0.0), ["backbone"])))


@pytest.mark.parametrize("client", ["fedu", "fedema"])
def test_a_whole_run(client: str, tmp_path: Path) -> None:
    words = ["client.threshold=0.001"] if client == "fedu" else []
    run = [*TINY, *BYOL, *words, "engine=local", "rounds=3", "cohort=4", f"client={client}"]
    assert main([*run, f"run_dir={tmp_path / 'run'}"]) == 0
    assert result(tmp_path / "run")["failures"] == 0
    rounds = [json.loads(line)["metrics"] for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert all(metrics["drift"] > 0 for metrics in rounds)
    if client == "fedema":
        assert [metrics["local-share"] for metrics in rounds[:2]] == pytest.approx([0, 0.7])
        assert 0 < rounds[2]["local-share"] <= 1


@pytest.mark.parametrize("client", ["fedu", "fedema"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*BYOL, f"client={client}", *(["client.threshold=0.001"] if client == "fedu" else [])]
    monkeypatch.setitem(test_resume.STRATEGIES, client, words)
    test_resume.test_an_interrupted_run_goes_on_to_the_same_bits(client, 3, tmp_path, monkeypatch)
