"""FedVSSL on the Weizmann actions, one client a person: retrieval across people, beside all that it must beat.

    python -m benchmarks.fedvssl_weizmann DIR   # the folder with metadata.csv; see --help for time and other choices

Every method is `experiment=fedvssl_weizmann` with a few overrides. Each of three folds holds out three people as
queries. A mean is over folds and seeds; a spread is the standard deviation over seeds of the mean over folds. A run
that is already in the runs folder is read, not repeated.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiments import ROOT, Result, run_all, spread
from benchmarks.measure import report

FOLDS = (("daria", "denis", "eli"), ("ido", "ira", "lena"), ("lyova", "moshe", "shahar"))
ONE_CLIENT = ("partition=iid", "partition.num_clients=1", "strategy=fedavg")
METHODS: Mapping[str, Sequence[str]] = {
    "FedVSSL (alpha 0, beta 0): FedAvg of the backbone": ("strategy.alpha=0", "strategy.beta=0"),
    "FedVSSL (alpha 1, beta 0)": ("strategy.alpha=1", "strategy.beta=0"),
    "FedVSSL (alpha 0, beta 1)": ("strategy.alpha=0", "strategy.beta=1"),
    "FedVSSL (alpha 1, beta 1)": ("strategy.alpha=1", "strategy.beta=1"),
    "FedVSSL (alpha 0.9, beta 0)": ("strategy.alpha=0.9", "strategy.beta=0"),
    "FedVSSL (alpha 0.9, beta 1)": ("strategy.alpha=0.9", "strategy.beta=1"),
    "FedAvg of everything": ("strategy=fedavg",),
    "FedVSSL (alpha 0.9, beta 0), pretext VCOP": ("objective=vcop",),
    "FedVSSL (alpha 0.9, beta 0), pretext Speed": ("objective=speed",),
    "Centralised, as many steps as one client": (*ONE_CLIENT, "client.epochs=1"),
    "Centralised, as many steps as all clients": ONE_CLIENT,
}
SCORES = ("R@1", "R@5")


def name(method: str, fold: int, seed: int) -> str:
    """Return the name of a run."""
    return f"{list(METHODS).index(method)}-{fold}-{seed}"


def words(method: str, fold: int, seed: int, data: Path) -> list[str]:
    """Return what a run is made from."""
    settings = [f"data.root={data}", f"data.test_owners=[{','.join(FOLDS[fold])}]", f"seed={seed}"]
    return ["experiment=fedvssl_weizmann", *settings, *METHODS[method]]


def rows(results: Mapping[str, Result], seeds: Sequence[int]) -> list[list[str]]:
    """Return a row for the untrained encoder and for each method."""
    first = next(iter(METHODS))
    kinds = {"Untrained": (first, "untrained_scores"), **{method: (method, "scores") for method in METHODS}}
    values = {
        label: np.array([[[results[name(method, fold, seed)][kind][key] for key in SCORES] for fold in range(3)]
                         for seed in seeds])
        for label, (method, kind) in kinds.items()
    }  # [seeds, folds, scores]  # fmt: skip
    table = []
    for label, scores in values.items():
        over = spread((scores - values["Untrained"])[:, :, 0].mean(axis=1), "+")
        folds = " ".join(f"{value:.2f}" for value in scores[:, :, 0].mean(axis=0))
        table.append([label, *(spread(scores[:, :, place].mean(axis=1)) for place in range(2)), over, folds])
    return table


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with metadata.csv and the videos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once, one core each")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "fedvssl_weizmann", help="where runs are kept")
    arguments = parser.parse_args()
    keys = [(method, fold, seed) for seed in arguments.seeds for fold in range(3) for method in METHODS]
    jobs = {name(*key): words(*key, arguments.data.resolve()) for key in keys}
    results = run_all(jobs, arguments.runs.resolve(), arguments.jobs)
    title = "FedVSSL on the Weizmann actions: retrieval of training people's clips by other people's clips"
    header = ["", *SCORES, "R@1 over untrained", "R@1 of each fold"]
    note = f"Mean over 3 folds and seeds {arguments.seeds}; ± is the standard deviation over seeds. One core a run."
    report("fedvssl_weizmann", title, header, rows(results, arguments.seeds), [note], private=[str(arguments.data)])


if __name__ == "__main__":
    main()
