"""Kill workers and drivers at random moments: every run must end with the bits of one that was never disturbed.

    python -m benchmarks.survive   # 15 minutes on 2 cores: 20 runs lose a worker, 20 their driver

A worker, or the driver, gets SIGKILL. A run that lost a worker goes on by itself; one that lost its driver is started
again with resume=auto. The moments are drawn from --seed.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from json import loads
from pathlib import Path

import numpy as np

from benchmarks.measure import arguments, report
from fedssl.seeding import generator

ROOT = Path(__file__).parent.parent
RUN = [
    "data.num_train=24", "data.num_test=8", "data.num_classes=2", "partition.num_clients=6", "cohort=4", "rounds=6",
    "client.epochs=8", "client.batch_size=4", "evaluate_every=3", "evaluation.ks=[1]", "evaluation.num_clips=1",
    "model.width=4", "objective.hidden=16", "strategy.beta=1", "engine.num_workers=2", "engine.max_retries=3",
    "quorum=4",
]  # fmt: skip


def start(run_dir: Path, *words: str) -> subprocess.Popen[str]:
    """Start a run in a process of its own."""
    command = [sys.executable, "simulate.py", *RUN, *words, f"run_dir={run_dir}"]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str], run_dir: Path) -> str:
    """Wait for a run and return its hash.

    Raises:
        RuntimeError: It did not complete.
    """
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"exit {process.returncode}: {errors}")
    return str(loads((run_dir / "result.json").read_text())["model_sha256"])


def family(pid: int) -> dict[int, str]:
    """Return the command of each process that descends from `pid`."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    found = {pid}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return {child: commands[child] for child in found - {pid}}


def undisturbed(run_dir: Path) -> tuple[str, float, float]:
    """Return the hash of a run that nobody disturbs, its seconds, and those between its first and its last round."""
    begun = time.monotonic()
    process = start(run_dir)
    ends = [time.monotonic() for line in process.stderr or () if line.startswith("round ")]
    return finish(process, run_dir), time.monotonic() - begun, ends[-1] - ends[0]


def without_a_worker(run_dir: Path, rng: np.random.Generator, seconds: float) -> tuple[str, float]:
    """Kill a random worker at a random moment of `seconds` after the first round; return the hash and the moment."""
    process = start(run_dir)
    for line in process.stderr or ():
        if line.startswith("round 1/"):
            break
    moment = float(rng.uniform(0, seconds))
    time.sleep(moment)
    workers = [pid for pid, command in family(process.pid).items() if command.startswith("ray::_Worker")]
    if not workers:
        raise RuntimeError(f"no worker is left to kill after {moment:.1f} s: the run is too short")
    os.kill(int(rng.choice(workers)), signal.SIGKILL)
    return finish(process, run_dir), moment


def without_its_driver(run_dir: Path, rng: np.random.Generator, seconds: float) -> tuple[str, float]:
    """Kill the driver at a random moment of its run and resume; return the hash and the moment."""
    moment = float(rng.uniform(0, seconds))
    process = start(run_dir, "resume=auto")
    time.sleep(moment)
    children = family(process.pid)
    process.kill()
    process.communicate()
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        time.sleep(0.1)
    return finish(start(run_dir, "resume=auto"), run_dir), moment


def disturb(workers: int, drivers: int, seed: int, folder: Path) -> list[tuple[str, list[bool], list[float]]]:
    """Return, for each kind of disturbance, whether each run ended with the undisturbed hash, and the moments."""
    expected, whole, working = undisturbed(folder / "undisturbed")
    ends: list[tuple[str, list[bool], list[float]]] = []
    for kind, number in (("worker", workers), ("driver", drivers)):
        same, moments = [], []
        for index in range(number):
            rng, run_dir = generator(seed, "survive", kind, index), folder / f"{kind}-{index}"
            if kind == "worker":
                ended = without_a_worker(run_dir, rng, 0.8 * working)
            else:
                ended = without_its_driver(run_dir, rng, whole)
            same.append(ended[0] == expected)
            moments.append(ended[1])
        ends.append((kind, same, moments))
    return ends


def rows(ends: Sequence[tuple[str, list[bool], list[float]]]) -> list[list[str]]:
    """Return a row for each kind of disturbance."""
    return [
        [kind, str(len(same)), str(sum(same)), f"{min(moments):.1f} to {max(moments):.1f}"]
        for kind, same, moments in ends
    ]


def main() -> None:
    """Disturb, and write the table."""
    chosen = arguments(__doc__, workers=20, drivers=20, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        ends = disturb(chosen["workers"], chosen["drivers"], chosen["seed"], Path(folder))
    header = ["killed", "runs", "with the undisturbed hash", "moments, s"]
    note = "A worker's moment counts from the end of round 1, a driver's from its start."
    report("survive", "Runs that lost a worker or their driver", header, rows(ends), [note])
    sys.exit(0 if all(all(same) for _, same, _ in ends) else 1)


if __name__ == "__main__":
    main()
