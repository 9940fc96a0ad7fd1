"""Deployment: Flower's own SuperLink and SuperNodes run the same apps to the same bits as both grids."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import copy_checkout
from flwr.app import Context, RecordDict

from clients.app import device_config
from fedssl.errors import ConfigError
from simulate import main

TINY = [
    "data.num_train=16", "data.num_test=8", "data.num_classes=2", "partition.num_clients=2", "cohort=null", "rounds=1",
    "client.epochs=1", "client.batch_size=4", "evaluation.ks=[1]", "evaluation.num_clips=1", "model.width=4",
    "objective.hidden=16",
]  # fmt: skip
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 240


class Lan:
    """A SuperLink and two SuperNodes on loopback, with ports and a home of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = {
            **os.environ, "FLWR_HOME": str(folder / "home"), "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "home").mkdir()
        (folder / "home" / "config.toml").write_text(f'[superlink.lan]\naddress = "{self.address}"\ninsecure = true\n')

    def start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(BIN / words[0]), "--insecure", *words[1:]], cwd=self.folder, env=self.environment,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)

    def wait_for_link(self) -> None:
        host, port = self.address.split(":")
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                assert time.monotonic() < until, self.logs()
                time.sleep(0.2)
            else:
                return

    def stop(self) -> None:
        for process in reversed(self.processes):
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    running = Lan(tmp_path)
    try:
        host, port = running.address.split(":")
        running.start(
            "link", "flower-superlink", "--disable-runtime-dependency-installation", "--host", host, "--port", port,
            "--database", str(tmp_path / "link.sqlite"),
        )  # fmt: skip
        running.wait_for_link()
        for partition in (0, 1):
            running.start(
                f"node{partition}", "flower-supernode", "--superlink", running.address, "--port", str(free_port()),
                "--node-config", f"partition-id={partition} num-partitions=2",
            )  # fmt: skip
        yield running
    finally:
        running.stop()


def test_devices_give_the_same_bits_as_both_grids(lan: Lan, tmp_path: Path) -> None:
    overrides = " ".join([*TINY, f"run_dir={tmp_path / 'devices'}"])
    flwr = subprocess.run(
        [str(BIN / "flwr"), "run", str(copy_checkout(tmp_path)), "lan", "--stream", "--run-config",
         f"overrides={json.dumps(overrides)}"],
        env=lan.environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert (tmp_path / "devices" / "result.json").exists(), flwr.stdout + flwr.stderr + lan.logs()
    assert main([*TINY, "engine=local", f"run_dir={tmp_path / 'local'}"]) == 0
    assert main([*TINY, "engine=ray", "engine.num_workers=2", f"run_dir={tmp_path / 'ray'}"]) == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("devices", "local", "ray")]
    assert [one["status"] for one in results] == ["completed"] * 3
    assert len({one["model_sha256"] for one in results}) == 1
    assert results[0]["scores"] == results[1]["scores"] == results[2]["scores"]


def context(node_config: dict[str, str], overrides: list[str]) -> Context:
    return Context(1, 1, node_config, RecordDict(), {"overrides": shlex.join(overrides)})


def test_a_device_says_itself_where_its_data_is() -> None:
    overrides = ["data=video_folder", "data.root=/chosen/by/the/server"]
    assert (
        device_config(context({"data-root": "/my own/videos"}, overrides)).components["data"]["root"]
        == "/my own/videos"
    )
    with pytest.raises(ConfigError, match="node-config data-root: must be given"):
        device_config(context({}, overrides))
