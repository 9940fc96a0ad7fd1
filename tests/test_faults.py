"""What goes wrong in a client is survived, named and never averaged; what is lost is run again to the same bits."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
from federation import INITIAL, Client, Heard, federate
from flwr.app import Message, MessageType
from test_runs import TINY, result

import clients.handlers
from fedssl.config import Engine
from fedssl.errors import RunError
from fedssl.simulation.engine import open_grid
from fedssl.simulation.ray_grid import RayGrid
from fedssl.wire import LocalUpdate, TrainTask, write_task
from simulate import main

Work = Callable[[TrainTask, int], LocalUpdate]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests' folder


def plain(task: TrainTask, partition: int) -> LocalUpdate:
    arrays = {name: (array + partition + task.round).astype(array.dtype) for name, array in task.arrays.items()}
    return LocalUpdate(partition, task.round, arrays, partition + 1, {"loss": 1.0})


class Once:
    """Does `plain`, but partition 1 first does something else in round 2, once for each of `times` files."""

    def __init__(self, folder: Path, happen: Callable[[], None], times: int = 1) -> None:
        self.folder, self.happen, self.times = folder, happen, times

    def __call__(self, task: TrainTask, partition: int) -> LocalUpdate:
        seen = len(list(self.folder.iterdir()))
        if partition == 1 and task.round == 2 and seen < self.times:
            (self.folder / str(seen)).touch()
            self.happen()
        return plain(task, partition)


ORDERS = [(1, "longest_first"), (2, "by_partition"), (4, "longest_first")]


def die_late() -> None:
    time.sleep(1)  # by then the result before is where it can be fetched without its worker
    die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(600)


def on_ray(work: Work, **settings: object) -> Heard:
    return federate(work, Engine("ray", num_workers=2, **settings), rounds=3)


def test_a_killed_worker_is_replaced_and_its_client_run_again_to_the_same_bits(tmp_path: Path) -> None:
    undisturbed = federate(plain, Engine("local"), rounds=3)
    heard = on_ray(Once(tmp_path, die), max_retries=1)
    assert list(tmp_path.iterdir())
    assert heard.failures == []
    assert heard.sha256 == undisturbed.sha256


def test_a_client_whose_worker_dies_too_often_fails_by_name(tmp_path: Path) -> None:
    heard = on_ray(Once(tmp_path, die, times=2), max_retries=1)
    (failure, _) = heard.failures[0]
    assert (failure.round, failure.partition) == (2, 1)
    assert failure.reason.startswith("its worker died 2 times, engine.max_retries=1: ")
    assert [len(record.clients) for record in heard.records] == [4, 3, 4]


def test_a_result_from_before_the_loss_of_its_worker_counts_and_the_loss_is_that_of_the_next(tmp_path: Path) -> None:
    with open_grid(Engine("ray", num_workers=1, max_retries=0), Client(Once(tmp_path, die_late)), 4) as grid:
        assert isinstance(grid, RayGrid)
        task = write_task(TrainTask(2, 2, 0, INITIAL))
        nodes = [grid.node_of(partition) for partition in (0, 1, 2)]
        grid.push_messages([Message(task, node, MessageType.TRAIN, group_id="2") for node in nodes])
        (started,) = grid._starting
        ray.get(started)
        grid._news(started)
        grid._fill()  # partition 0, and partition 1 behind it
        jobs = list(grid._running)
        ray.wait(jobs, num_returns=2, timeout=60)
        first, second = grid._news(jobs[1])  # heard of the loss before the result
        assert not first.has_error()
        assert "its worker died 1 times" in second.error.reason
        assert len(grid._queue) == 1


def test_a_client_that_hangs_is_ended_and_the_others_are_not_harmed(tmp_path: Path) -> None:
    begun = time.monotonic()
    heard = on_ray(Once(tmp_path, hang), client_timeout_seconds=3.0)
    assert time.monotonic() - begun < 300
    assert [(failure.partition, failure.reason) for failure, _ in heard.failures] == [
        (1, "no answer after engine.client_timeout_seconds=3")
    ]
    assert [len(record.clients) for record in heard.records] == [4, 3, 4]


@pytest.mark.parametrize(
    "engine", [Engine("ray", num_workers=2, schedule="by_partition"), Engine("ray", num_workers=4)]
)
def test_the_order_of_work_and_the_number_of_workers_do_not_change_the_bits(engine: Engine) -> None:
    assert federate(plain, engine, rounds=3).sha256 == federate(plain, Engine("local"), rounds=3).sha256


def test_clients_with_most_examples_are_asked_first() -> None:
    heard = federate(plain, Engine("local"), rounds=1)
    assert heard.records[0].clients == (3, 2, 1, 0)


def test_a_worker_that_cannot_start_ends_the_run(tmp_path: Path) -> None:
    class Unmakeable:
        def __reduce__(self) -> tuple:
            return os._exit, (1,)

    with pytest.raises((RuntimeError, ray.exceptions.RayError)):
        federate(Unmakeable(), Engine("ray", num_workers=1), rounds=1)


CLUSTER = """
import sys, time, ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def test_a_cluster_that_is_there_is_joined_and_left_running() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        assert head.stdin
        assert head.stdout
        address = head.stdout.readline().strip()
        heard = federate(plain, Engine("ray", num_workers=1), rounds=1, address=address)
        assert heard.sha256 == federate(plain, Engine("local"), rounds=1).sha256
        assert head.poll() is None
        head.stdin.close()


def test_an_exception_of_a_client_is_kept_whole_and_the_round_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = clients.handlers._work

    def broken(workspace: object, task: TrainTask, memory: object, partition: int, *more: object) -> object:
        if (task.round, partition) == (1, 0):
            raise OSError("the disk of this client is full")
        return original(workspace, task, memory, partition, *more)

    monkeypatch.setattr(clients.handlers, "_work", broken)
    assert main([*TINY, "cohort=4", "quorum=3", "engine=local", f"run_dir={tmp_path}"]) == 0
    reason = "OSError: the disk of this client is full"
    details = (tmp_path / "failures" / "round-1-partition-0.txt").read_text()
    assert details.startswith("Traceback (most recent call last):")
    assert "in broken" in details
    assert details.endswith(reason + "\n")
    shown = f"round 1, partition 0 failed: {reason}  (failures/round-1-partition-0.txt)"
    assert shown in capsys.readouterr().err
    assert result(tmp_path)["failures"] == 1


def test_a_client_that_trained_to_nan_fails_and_remembers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = clients.handlers._work

    def broken(workspace: object, task: TrainTask, memory: object, partition: int, *more: object) -> object:
        done = original(workspace, task, memory, partition, *more)
        if (task.round, partition) == (1, 0):
            next(workspace.model["head"].parameters()).data[:] = np.nan
        return done

    monkeypatch.setattr(clients.handlers, "_work", broken)
    assert main([*TINY, "cohort=4", "quorum=3", "engine=local", f"run_dir={tmp_path}"]) == 0
    details = (tmp_path / "failures" / "round-1-partition-0.txt").read_text()
    assert "is not finite after training" in details.splitlines()[-1]
    assert not (tmp_path / "checkpoints" / "memories" / "0-1.memory").exists()
    assert result(tmp_path)["failures"] == 1  # round 2 begins from a head that was never spoiled


def test_a_round_under_its_quorum_ends_before_anything_is_averaged(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"round 2, partition 1: .* \(1 of 4 clients failed; a smaller quorum"):
        federate(Once(tmp_path, lambda: 1 / 0), Engine("local"), rounds=3, quorum=4)
