"""What privacy at the server adds to a round: 11 million parameters, with and without it in turns.

    python -m benchmarks.private_round   # five minutes on 2 cores

Clients train a ResNet-18 for an epoch on handwritten digits; the same runs with `privacy=client` clip every update and
noise the sum. Runs alternate, so that a busy machine slows both.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.measure import arguments, report
from simulate import main as simulate

BASE = [
    "experiment=quickstart_images",
    "engine=local",
    "model=resnet18",
    "model.norm=group",
    "partition=iid",
    "client.epochs=1",
    "client.batch_size=32",
    "evaluation=none",
    "strategy.weights=equal",
    "checkpoint.every=null",
]
PRIVATE = ("privacy=client", "privacy.noise_multiplier=1", "privacy.metrics=unprotected")


def seconds(folder: Path, words: list[str]) -> list[float]:
    """Run and return the seconds of each round but the first, which warms up."""
    if simulate([*BASE, *words, f"run_dir={folder}"]):
        sys.exit(1)
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [float(json.loads(line)["seconds"]) for line in lines[1:]]


def main() -> None:
    """Measure and write the table."""
    chosen = arguments(__doc__, rounds=3, clients=4, turns=3)
    size = [f"rounds={chosen['rounds'] + 1}", f"partition.num_clients={chosen['clients']}"]
    taken: dict[str, list[float]] = {"none": [], "client": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(chosen["turns"]):
            taken["none"] += seconds(Path(folder) / f"none-{turn}", size)
            taken["client"] += seconds(Path(folder) / f"client-{turn}", [*size, *PRIVATE])
    bare = median(taken["none"])
    rows = [
        [name, f"{median(each):.2f}", f"{min(each):.2f} to {max(each):.2f}", f"{median(each) / bare:.3f}"]
        for name, each in taken.items()
    ]
    header = ["privacy", "s a round", "fastest to slowest round", "ratio"]
    note = f"{chosen['clients']} clients; medians over {chosen['turns']} alternating runs of {chosen['rounds']} rounds."
    report("private_round", "Seconds a round with privacy at the server", header, rows, [note])


if __name__ == "__main__":
    main()
