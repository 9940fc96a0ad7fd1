"""SCAFFOLD on losses whose drift and optimum are known, and its variates by hand."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import test_resume
import torch
from flwr.app import Message, MessageType, RecordDict
from quadratics import NAME, Federation, Loss, Point, answer, quadratic, sgd, task_of
from test_runs import TINY, failed_run, result
from torch import nn

from clients.local_training import LocalTraining
from clients.scaffold import VARIATE, Scaffold
from fedssl.arrays import Arrays
from fedssl.memory import Memory
from fedssl.simulation.grid import identify
from fedssl.wire import LocalUpdate, write_update
from simulate import main
from strategies import scaffold
from strategies.averaging import Averaging
from strategies.base import Plan
from strategies.replies import read_sound

CURVATURES = np.array([2.0, 3.0, 5.0])
CENTRES = np.array([[4.0, 0.0], [-1.0, 2.0], [0.5, -3.0]])
LOSSES = [quadratic(a, b) for a, b in zip(CURVATURES, CENTRES, strict=True)]
OPTIMUM = CURVATURES @ CENTRES / CURVATURES.sum()
RUN = [*TINY, "engine=local", "objective=cvrl", "strategy=scaffold", "client=scaffold", "optimizer.lr=0.05"]


def gradients(point: np.ndarray) -> np.ndarray:
    return CURVATURES[:, None] * (point - CENTRES)


def shell() -> nn.ModuleDict:
    return nn.ModuleDict({"backbone": Point(2)})


def test_fedavg_drifts_to_a_point_that_is_known_and_scaffold_converges_to_the_optimum() -> None:
    lr, steps = 0.05, 6
    fedavg = Federation(Averaging(), LocalTraining(sgd(lr), epochs=steps), LOSSES, [9.0, 9.0], rounds=30)
    kept = 1 - (1 - lr * CURVATURES) ** steps
    np.testing.assert_allclose(fedavg.points[-1], kept @ CENTRES / kept.sum(), atol=1e-9)
    assert np.linalg.norm(fedavg.points[-1] - OPTIMUM) > 0.25
    corrected = Federation(scaffold.Scaffold(), Scaffold(sgd(lr), epochs=steps), LOSSES, [9.0, 9.0], rounds=30)
    np.testing.assert_allclose(corrected.points[-1], OPTIMUM, atol=1e-9)
    for client, memory in corrected.memories.items():
        np.testing.assert_allclose(memory.extras[VARIATE][NAME], gradients(OPTIMUM)[client], atol=1e-8)
    np.testing.assert_allclose(corrected.strategy.state()[VARIATE][NAME], 0, atol=1e-8)


def test_momentum_and_a_server_optimizer_lead_to_the_same_optimum() -> None:
    procedure = Scaffold(sgd(0.01, momentum=0.9), epochs=6)
    strategy = scaffold.Scaffold(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.8))
    federation = Federation(strategy, procedure, LOSSES, [9.0, 9.0], rounds=50)
    np.testing.assert_allclose(federation.points[-1], OPTIMUM, atol=1e-9)


@dataclass
class Some(Federation):
    """Two of the three clients take part in a round."""

    def cohort(self, number: int) -> Sequence[int]:
        taking_part = sorted({number % 3, (number + 1) % 3})
        variate = self.strategy.state()[VARIATE][NAME]
        own = [self.memories[k].extras[VARIATE][NAME] if k in self.memories else np.zeros(2) for k in range(3)]
        np.testing.assert_allclose(variate, np.mean(own, axis=0), atol=1e-12)
        return taking_part


def test_the_servers_variate_stays_the_mean_of_all_clients_variates_also_of_those_that_are_absent() -> None:
    federation = Some(scaffold.Scaffold(), Scaffold(sgd(0.05), epochs=4), LOSSES, [1.0, 1.0], rounds=50)
    np.testing.assert_allclose(federation.points[-1], OPTIMUM, atol=1e-9)


def test_with_variates_of_0_the_first_round_is_that_of_fedavg() -> None:
    settings = {"optimizer": sgd(0.05, momentum=0.9, weight_decay=0.01), "epochs": 4, "batch_size": 2}
    fedavg = Federation(Averaging(), LocalTraining(**settings), LOSSES, [1.0, -1.0], rounds=2)
    corrected = Federation(scaffold.Scaffold(), Scaffold(**settings), LOSSES, [1.0, -1.0], rounds=2)
    np.testing.assert_allclose(corrected.points[0], fedavg.points[0], atol=1e-12)
    assert np.abs(corrected.points[1] - fedavg.points[1]).max() > 1e-3


def test_for_identical_clients_the_correction_vanishes() -> None:
    settings = {"optimizer": sgd(0.05), "epochs": 4}
    losses = [quadratic(3.0, [1.0, 2.0])] * 3
    fedavg = Federation(Averaging(), LocalTraining(**settings), losses, [5.0, -5.0], rounds=5)
    corrected = Federation(scaffold.Scaffold(), Scaffold(**settings), losses, [5.0, -5.0], rounds=5)
    np.testing.assert_allclose(corrected.points, fedavg.points, atol=1e-12)


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True},
                                      {"momentum": 0.5, "dampening": 0.3}])  # fmt: skip
def test_the_variate_of_a_constant_gradient_is_that_gradient_whatever_the_steps(momentum: dict[str, float]) -> None:
    slope = torch.tensor([0.7, -0.2], dtype=torch.float64)
    procedure = Scaffold(sgd(0.03, **momentum), epochs=3, batch_size=3, schedule="cosine")
    server, own = np.array([0.1, 0.4]), np.array([-0.5, 0.2])
    task = task_of({NAME: np.ones(2)}, 2, 3, variate={NAME: server})
    memory = Memory({}, {VARIATE: {NAME: own}})
    update, memory = answer(procedure, Loss(lambda point: slope @ point), shell(), task, memory)
    np.testing.assert_allclose(memory.extras[VARIATE][NAME], slope, atol=1e-12)
    np.testing.assert_allclose(update.extras[VARIATE][NAME], slope - own, atol=1e-12)


def test_one_round_by_hand() -> None:
    # two steps at rate 0.1 from 1 with the gradient 2 x (curvature 2, centre 0) and a correction of 0.5 - (-0.5) = 1:
    # 1 - 0.1 * (2 + 1) = 0.7, then 0.7 - 0.1 * (1.4 + 1) = 0.46
    server, own = {NAME: np.array([0.5])}, {NAME: np.array([-0.5])}
    task = task_of({NAME: np.array([1.0])}, variate=server)
    procedure = Scaffold(sgd(0.1), epochs=1, batch_size=2)
    model = nn.ModuleDict({"backbone": Point(1)})
    update, memory = answer(procedure, quadratic(2.0, [0.0]), model, task, Memory({}, {VARIATE: own}))
    assert update.arrays[NAME] == pytest.approx([0.46])
    # option II: -0.5 - 0.5 + (1 - 0.46) / (2 * 0.1) = 1.7, the mean of the gradients 2 and 1.4
    assert memory.extras[VARIATE][NAME] == pytest.approx([1.7])
    assert update.extras[VARIATE][NAME] == pytest.approx([2.2])


def test_a_parameter_that_the_loss_does_not_use_is_corrected_as_one_with_a_gradient_of_0() -> None:
    model = nn.ModuleDict({"backbone": Point(1), "head": Point(1)})
    arrays = {NAME: np.array([1.0]), "head.point": np.array([1.0])}
    task = task_of(arrays, variate={NAME: np.array([0.0]), "head.point": np.array([0.5])})
    update, memory = answer(Scaffold(sgd(0.1), batch_size=2), quadratic(1.0, [0.0]), model, task)
    assert update.arrays["head.point"] == pytest.approx([1 - 2 * 0.1 * 0.5])
    assert memory.extras[VARIATE]["head.point"] == pytest.approx([0.0])


def test_buffers_have_no_variate_and_payloads_are_counted() -> None:
    strategy = scaffold.Scaffold()
    strategy.buffers = frozenset({"backbone.count"})
    current = {NAME: np.ones(2, np.float32), "backbone.count": np.array(3)}
    task = strategy.task(current, 1, Plan(1, 0, 2, None, 1))
    assert {name: (array.dtype, array.shape) for name, array in task.extras[VARIATE].items()} == {
        NAME: (np.dtype(np.float32), (2,))
    }


CHANGE = {NAME: np.array([0.5, 1.0], np.float32)}
SPOILT: list[tuple[dict[str, Arrays], str]] = [
    ({}, "variate is missing: does the client procedure go with the strategy?"),
    ({"variat": CHANGE}, "variate is missing: does the client procedure go with the strategy?"),
    ({VARIATE: {}}, f"variate: {NAME} is missing"),
    ({VARIATE: {**CHANGE, "backbone.other": CHANGE[NAME]}}, "variate: backbone.other is unknown"),
    ({VARIATE: {NAME: CHANGE[NAME][:1]}}, f"variate: {NAME} is float32(1,), not float32(2,)"),
    ({VARIATE: {NAME: CHANGE[NAME].astype(np.float64)}}, f"variate: {NAME} is float64(2,), not float32(2,)"),
    ({VARIATE: {NAME: CHANGE[NAME] * np.nan}}, f"{NAME} holds values that are not finite"),
]


@pytest.mark.parametrize(("extras", "reason"), SPOILT, ids=lambda value: str(value)[:40])
def test_a_variate_that_is_wrong_is_refused_by_name(extras: dict[str, Arrays], reason: str) -> None:
    strategy, current = scaffold.Scaffold(), {NAME: np.ones(2, np.float32)}
    strategy.task(current, 1, Plan(1, 0, 2, None, 1))
    identify()
    request = Message(RecordDict(), 1, MessageType.TRAIN)

    def read(groups: dict[str, Arrays]) -> LocalUpdate:
        reply = Message(write_update(LocalUpdate(0, 1, current, 4, {}, groups)), reply_to=request)
        return read_sound(reply, 0, 1, current, (), strategy.extras(current))

    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        read(extras)
    assert list(read({VARIATE: CHANGE}).extras) == [VARIATE]


def test_the_wrong_partner_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="client=scaffold needs strategy=scaffold"):
        answer(Scaffold(sgd(0.1)), LOSSES[0], shell(), task_of({NAME: np.zeros(2)}))
    line = failed_run([*RUN, "rounds=1", "client=local_training"], tmp_path / "run", capsys)
    assert "variate is missing" in line


def test_an_optimizer_that_is_not_linear_in_gradients_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"optimizer must be torch\.optim\.SGD, .*, got Adam"):
        Scaffold(lambda parameters: torch.optim.Adam(parameters))
    assert main([*RUN, "optimizer=adamw"]) == 2
    assert "client.optimizer=AdamW: must be torch.optim.SGD" in capsys.readouterr().err


def test_the_state_is_restored() -> None:
    strategy, current, plan = scaffold.Scaffold(), {NAME: np.ones(2, np.float32)}, Plan(2, 0, 4, None, 1)
    strategy.task(current, 1, plan)
    strategy.merge(current, iter([LocalUpdate(0, 1, current, 4, {}, {VARIATE: CHANGE})]), 1)
    again = scaffold.Scaffold()
    again.restore(strategy.state(), current)
    variate = again.task(current, 2, plan).extras[VARIATE][NAME]
    assert variate.tolist() == [0.125, 0.25]  # the change of one of four clients
    fresh = scaffold.Scaffold()
    fresh.restore({}, current)
    assert fresh.task(current, 1, plan).extras[VARIATE][NAME].tolist() == [0, 0]


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(test_resume.STRATEGIES, "scaffold", RUN[-4:])
    test_resume.test_an_interrupted_run_goes_on_to_the_same_bits("scaffold", 3, tmp_path, monkeypatch)


def test_ray_with_two_workers_gives_the_bits_of_one_process_and_payloads_double(tmp_path: Path) -> None:
    for name, words in (
        ("local", []),
        ("ray", ["engine=ray", "engine.num_workers=2"]),
        ("fedavg", ["strategy=fedavg", "client=local_training"]),
    ):
        assert main([*RUN, *words, f"run_dir={tmp_path / name}"]) == 0
    local, ray, fedavg = (result(tmp_path / name) for name in ("local", "ray", "fedavg"))
    assert local["model_sha256"] == ray["model_sha256"] != fedavg["model_sha256"]
    assert local["failures"] == ray["failures"] == 0
    rounds = [json.loads(line) for line in (tmp_path / "ray" / "rounds.jsonl").read_text().splitlines()]
    assert rounds[1]["bytes_up"] == rounds[1]["bytes_down"]
    assert 1.9 < local["bytes_up"] / fedavg["bytes_up"] < 2
    assert local["bytes_down"] == local["bytes_up"]
