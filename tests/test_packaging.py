"""What is shipped: a FAB for devices and a wheel hold every module and every yaml, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

from checkout import copy_checkout, sources


def run(folder: Path, *words: str) -> None:
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(folder.parent / "home")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def names(folder: Path, pattern: str) -> set[str]:
    (archive,) = folder.rglob(pattern)
    with ZipFile(archive) as opened:
        return set(opened.namelist())


def test_the_bundle_for_devices_holds_every_module_and_every_yaml(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path)
    run(folder, str(Path(sys.executable).parent / "flwr"), "build")
    assert names(folder, "*.fab") - {".info/CONTENT"} == sources(folder) | {"pyproject.toml"}


def test_the_wheel_holds_every_module_and_every_yaml(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path)
    run(folder, sys.executable, "-m", "hatchling", "build", "-t", "wheel")
    packed = {name for name in names(folder, "*.whl") if ".dist-info/" not in name}
    assert packed == sources(folder) | {"simulate.py"}
