"""FedProx against the closed form of gradient descent on quadratics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from quadratics import NAME, Federation, Point, answer, quadratic, sgd, task_of
from test_runs import TINY, result
from torch import nn

from clients.fedprox import FedProx
from clients.local_training import LocalTraining
from fedssl.memory import Memory
from fedssl.objectives.objective import Batch
from simulate import main
from strategies.averaging import Averaging

ARRAYS = {NAME: np.array([1.0, -2.0])}


def test_steps_close_in_on_the_point_between_the_optimum_and_the_received_model() -> None:
    a, b, mu, lr = 3.0, np.array([5.0, 1.0]), 0.5, 0.1
    procedure = FedProx(sgd(lr), epochs=7, batch_size=4, mu=mu)
    update, _ = answer(procedure, quadratic(a, b), nn.ModuleDict({"backbone": Point(2)}), task_of(ARRAYS))
    between = (a * b + mu * ARRAYS[NAME]) / (a + mu)
    expected = between + (1 - lr * (a + mu)) ** 7 * (ARRAYS[NAME] - between)
    np.testing.assert_allclose(update.arrays[NAME], expected, atol=1e-12)


def test_the_penalty_is_half_of_mu_times_the_squared_distance_and_is_logged_beside_the_loss() -> None:
    procedure = FedProx(sgd(0.5), epochs=2, batch_size=4, mu=0.6)
    loss = quadratic(1.0, [1.0, 0.0])
    update, _ = answer(procedure, loss, nn.ModuleDict({"backbone": Point(2)}), task_of(ARRAYS))
    # from (1, -2) one step leads to (1, -1): penalties 0 and 0.6 / 2 * 1, losses 4 / 2 and 1 / 2
    assert update.metrics["penalty"] == pytest.approx(0.15)
    assert update.metrics["loss"] == pytest.approx(1.25)


def test_without_weight_it_is_local_training_to_the_bit() -> None:
    losses = [quadratic(1.0, [0.3, 0.1]), quadratic(3.0, [-0.7, 0.2])]
    settings = {"optimizer": sgd(0.1, momentum=0.9), "epochs": 3, "batch_size": 3}
    plain = Federation(Averaging(), LocalTraining(**settings), losses, [1.0, -1.0], rounds=3)
    proximal = Federation(Averaging(), FedProx(**settings, mu=0.0), losses, [1.0, -1.0], rounds=3)
    assert np.array_equal(plain.points, proximal.points)


def test_the_larger_mu_the_nearer_clients_stay_to_what_they_received() -> None:
    losses = [quadratic(1.0, [4.0]), quadratic(3.0, [-4.0])]

    def drift(mu: float) -> float:
        clients = [
            answer(FedProx(sgd(0.05), epochs=10, mu=mu), loss, nn.ModuleDict({"backbone": Point(1)}), task)[0]
            for loss in losses
        ]
        return float(np.abs(clients[0].arrays[NAME] - clients[1].arrays[NAME])[0])

    task = task_of({NAME: np.zeros(1)})
    assert drift(10.0) < drift(1.0) < drift(0.1) < drift(0.0)


def test_what_is_not_exchanged_and_what_is_not_trained_is_left_alone() -> None:
    model = nn.ModuleDict({"backbone": Point(1), "head": Point(1), "fixed": Point(1)})
    model["fixed"].point.requires_grad = False
    arrays = {"backbone.point": np.zeros(1), "fixed.point": np.ones(1), "backbone.count": np.array(7)}
    task = task_of(arrays)
    rule = FedProx(sgd(0.1), mu=2.0).rule(model, quadratic(1.0, [0.0]), None, task)
    with torch.no_grad():
        for group, value in (("backbone", 3.0), ("head", 100.0), ("fixed", 100.0)):
            model[group].point.fill_(value)
    batch = Batch((), torch.zeros(0), torch.zeros(0), torch.zeros(0), torch.zeros(0))
    penalty = rule.penalty(model, batch)
    assert penalty.item() == 9.0  # the backbone alone: 2 / 2 * 3 ** 2
    penalty.backward()
    assert model["backbone"].point.grad.item() == 6.0
    assert model["head"].point.grad is None


def test_a_mu_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="mu must be 0 or more, got -1"):
        FedProx(sgd(0.1), mu=-1)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        FedProx(sgd(0.1), epochs=0)


def test_a_whole_run_differs_from_fedavg_only_where_mu_is_not_zero(tmp_path: Path) -> None:
    run = [*TINY, "engine=local", "objective=cvrl", "strategy=fedavg", "rounds=1"]
    hashes = []
    for name, words in (("avg", []), ("zero", ["client.mu=0.0"]), ("prox", ["client.mu=1.0"])):
        client = ["client=fedprox"] if words else []
        assert main([*run, *client, *words, "optimizer.lr=0.05", f"run_dir={tmp_path / name}"]) == 0
        assert result(tmp_path / name)["failures"] == 0
        hashes.append(result(tmp_path / name)["model_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_memory_is_that_of_local_training() -> None:
    model = nn.ModuleDict({"backbone": Point(1), "head": Point(1)})
    _, memory = answer(FedProx(sgd(0.1)), quadratic(1.0, [0.0]), model, task_of({NAME: np.ones(1)}))
    assert isinstance(memory, Memory)
    assert sorted(memory.tensors) == ["backbone.count", "head.count", "head.point"]
    assert memory.extras == {}
