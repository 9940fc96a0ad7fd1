"""Objectives of images under federated learning: what ten clients learn together, beside the same work in one place.

    python -m benchmarks.image_ssl DIR   # the folder with train.npz and test.npz; see --help for time and other choices

Every run is `experiment=ssl_images` with a few overrides: ten clients that share the images out evenly, or that hold
two classes each, and one client that holds them all and makes as many passes. Scores are of the frozen encoder; beside
stand those of the untrained encoder and of the pixels themselves. A run that is done is read, not repeated.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.experiments import ROOT, Result, run_all, spread
from benchmarks.measure import report

OBJECTIVES = {
    "SimCLR": "simclr",
    "BYOL": "byol",
    "SimSiam": "simsiam",
    "Barlow Twins": "barlow_twins",
    "VICReg": "vicreg",
    "MAE": "mae",
    "DIET": "diet",
}
PLACES = {
    "ten clients, IID": ["partition=iid", "partition.num_clients=10"],
    "ten clients, two classes each": ["partition=classes_per_client", "partition.num_clients=10"],
    "one client": ["partition=iid", "partition.num_clients=1"],
}
QUICK_TEACHER = "objective.momentum_start=0.9"  # one of 0.99 would still be untrained after so few steps
METHODS: Mapping[str, Sequence[str]] = {
    **{
        f"{label}, FedAvg": [f"objective={name}", *([QUICK_TEACHER] if name == "byol" else [])]
        for label, name in OBJECTIVES.items()
    },
    "BYOL, FedU": ["objective=byol", QUICK_TEACHER, "client=fedu"],
    "BYOL, FedEMA": ["objective=byol", QUICK_TEACHER, "client=fedema"],
}
SCORES = ("kNN", "linear")
CENTRAL = "one client"


def cases() -> list[tuple[str, str]]:
    """Return each method with each place; methods that mix a local with a global model need more than one client."""
    return [(method, place) for method in METHODS for place in PLACES if place != CENTRAL or "FedAvg" in method]


def name(method: str, place: str, seed: int) -> str:
    """Return the name of a run."""
    return f"{list(METHODS).index(method)}-{list(PLACES).index(place)}-{seed}"


def words(method: str, place: str, seed: int, data: Path) -> list[str]:
    """Return what a run is made from; the data are the same for every seed."""
    return ["experiment=ssl_images", f"data.root={data}", f"seed={seed}", *PLACES[place], *METHODS[method]]


def cells(results: Sequence[Result], kind: str, suffix: str = "") -> list[str]:
    """Return the mean and spread over seeds of each score."""
    return [spread([result[kind][score + suffix] for result in results]) for score in SCORES]


def rows(results: Mapping[str, Result], seeds: Sequence[int]) -> list[list[str]]:
    """Return a row for pixels, one for the untrained encoder, and one for each method."""
    first = [results[name(*cases()[0], seed)] for seed in seeds]
    blank = ["", ""] * (len(PLACES) - 1)
    table = [
        ["Pixels", *cells(first, "scores", " (pixels)"), *blank],
        ["Untrained encoder", *cells(first, "untrained_scores"), *blank],
    ]
    for method in METHODS:
        row = [method]
        for place in PLACES:
            known = (method, place) in cases()
            row += cells([results[name(method, place, seed)] for seed in seeds], "scores") if known else ["", ""]
        table.append(row)
    return table


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with train.npz and test.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once, one core each")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "image_ssl", help="where runs are kept")
    arguments = parser.parse_args()
    keys = [(method, place, seed) for seed in arguments.seeds for method, place in cases()]
    jobs = {name(*key): words(*key, arguments.data.resolve()) for key in keys}
    results = run_all(jobs, arguments.runs.resolve(), arguments.jobs)
    header = ["", *(f"{score}, {place}" for place in PLACES for score in SCORES)]
    note = f"Accuracy; mean over seeds {arguments.seeds}, ± is the standard deviation over them. One core a run."
    title = "Self-supervised objectives of images, federated and in one place"
    report("image_ssl", title, header, rows(results, arguments.seeds), [note], private=[str(arguments.data)])


if __name__ == "__main__":
    main()
