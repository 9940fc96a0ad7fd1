"""Private runs on devices: the bits, the charges and the guarantee of the same run in simulation."""

import json
import subprocess
from pathlib import Path
from typing import Any

from checkout import copy_checkout
from test_deployment import BIN, PATIENCE_SECONDS, Lan, lan

from simulate import main

TINY = (
    "experiment=quickstart_images", "partition=iid", "partition.num_clients=2", "data.test_fraction=0.95", "height=8",
    "width=8", "model.width=4", "model.norm=group", "model.stem_stride=2", "client.epochs=1",
    "evaluation=none", "rounds=1", "objective=rotnet", "privacy.noise_multiplier=1", "privacy.accountant=rdp",
)  # fmt: skip
MECHANISMS = {
    "example": ("privacy=example", "privacy.sampling_rate=0.5"),
    "client": ("privacy=client", "strategy.weights=equal"),
}
__all__ = ["lan"]  # a fixture


def deployed(lan: Lan, checkout: Path, path: Path, words: tuple[str, ...]) -> dict[str, Any]:
    overrides = json.dumps(" ".join([*words, f"run_dir={path}"]))
    flwr = subprocess.run(
        [str(BIN / "flwr"), "run", str(checkout), "lan", "--stream", "--run-config", f"overrides={overrides}"],
        env=lan.environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert (path / "result.json").exists(), flwr.stdout + flwr.stderr + lan.logs()
    return json.loads((path / "result.json").read_text())


def test_devices_release_what_a_simulation_releases_and_pay_the_same(lan: Lan, tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path)
    for name, words in MECHANISMS.items():
        simulated = tmp_path / name
        one = deployed(lan, checkout, tmp_path / f"{name}_devices", (*TINY, *words))
        assert main([*TINY, *words, "engine=local", f"run_dir={simulated}"]) == 0
        other = json.loads((simulated / "result.json").read_text())
        assert one["status"] == other["status"] == "completed"
        assert one["failures"] == other["failures"] == 0
        assert one["model_sha256"] == other["model_sha256"]
        assert one["privacy"] == other["privacy"]
