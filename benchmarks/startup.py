"""Seconds from the command to the end of the first round, beside the imports that no run can do without.

    python -m benchmarks.startup   # a minute on 2 cores

The run is small, so that its first round is all start. The files are warm: a first command runs before the clock does.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.measure import arguments, report

ROOT = Path(__file__).parent.parent

SMALL = [
    "data.num_train=24", "data.num_test=8", "data.num_classes=2", "partition.num_clients=4", "cohort=2", "rounds=1",
    "client.epochs=1", "evaluation=none", "model.width=4", "objective.hidden=16",
]  # fmt: skip
ENGINES = {"engine=local": ["engine=local"], "engine=ray, 2 workers": ["engine.num_workers=2"]}
IMPORTS = "import flwr.serverapp, flwr.clientapp, hydra, numpy, torch"


def seconds(command: list[str], until: str | None) -> float:
    """Return the seconds until a line with `until` appears on stderr, or until the end."""
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        taken = None
        for line in process.stderr or ():
            if until is not None and until in line and taken is None:
                taken = time.perf_counter() - begun
    if process.returncode != 0 or (until is not None and taken is None):
        raise RuntimeError(f"{command} failed")
    return time.perf_counter() - begun if taken is None else taken


def main() -> None:
    """Measure and write the table."""
    chosen = arguments(__doc__, repeats=5)
    with tempfile.TemporaryDirectory() as folder:
        taken: dict[str, list[float]] = {"imports": [], **{name: [] for name in ENGINES}}
        for repeat in range(chosen["repeats"] + 1):
            taken["imports"].append(seconds(["-c", IMPORTS], None))
            for number, (name, engine) in enumerate(ENGINES.items()):
                command = ["simulate.py", *SMALL, *engine, f"run_dir={folder}/{repeat}-{number}"]
                taken[name].append(seconds(command, "round 1/1"))
    base = median(taken["imports"][1:])
    rows = [[name, f"{median(all_[1:]):.2f}", f"{median(all_[1:]) / base:.2f}"] for name, all_ in taken.items()]
    note = f"Medians of {chosen['repeats']}; imports are `{IMPORTS}`."
    report("startup", "From the command to the first round", ["", "s", "over the imports"], rows, [note])


if __name__ == "__main__":
    main()
