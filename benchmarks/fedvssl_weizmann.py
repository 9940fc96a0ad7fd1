"""FedVSSL on the Weizmann actions, one client a person: retrieval across people, beside all that it must beat.

    python -m benchmarks.fedvssl_weizmann DIR   # the folder with metadata.csv; see --help for time and other choices

Every method is `experiment=fedvssl_weizmann` with a few overrides. Each of three folds holds out three people as
queries. A mean is over folds and seeds; a spread is the standard deviation over seeds of the mean over folds. A run
that is already in the runs folder is read, not repeated.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.measure import processor

ROOT = Path(__file__).parent.parent
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
Job = tuple[str, int, int]  # method, fold, seed


def run(job: Job, data: Path, runs: Path) -> dict[str, object]:
    """Return the result of one run, from its directory if the same run was completed there.

    Raises:
        RuntimeError: The run failed, or its directory holds another run or an unfinished one.
    """
    from fedssl.config import load
    from simulate import main

    method, fold, seed = job
    directory = runs / f"{list(METHODS).index(method)}-{fold}-{seed}"
    settings = [f"data.root={data}", f"data.test_owners=[{','.join(FOLDS[fold])}]", f"seed={seed}", "engine=local"]
    words = ["experiment=fedvssl_weizmann", *settings, *METHODS[method], f"run_dir={directory}"]
    if not directory.exists() and main(words) != 0:
        raise RuntimeError(f"{directory}: the run failed")
    read: dict[str, object] = json.loads((directory / "result.json").read_text())
    if read["status"] != "completed" or (directory / "config.yaml").read_text() != load(words).text:
        raise RuntimeError(f"{directory}: holds another run or an unfinished one; remove it or choose another --runs")
    return read


def table(results: Mapping[Job, Mapping[str, Mapping[str, float]]], seeds: Sequence[int]) -> list[str]:
    """Return the rows of a Markdown table."""
    first = next(iter(METHODS))
    names = {"Untrained": (first, "untrained_scores"), **{method: (method, "scores") for method in METHODS}}
    values = {
        name: np.array([[[results[method, fold, seed][kind][key] for key in ("R@1", "R@5")] for fold in range(3)]
                        for seed in seeds])
        for name, (method, kind) in names.items()
    }  # [seeds, folds, scores]  # fmt: skip
    rows = ["| | R@1 | R@5 | R@1 over untrained | R@1 of each fold |", "|---|---|---|---|---|"]
    for name, scores in values.items():
        over = spread((scores - values["Untrained"])[:, :, 0], "+")
        folds = " ".join(f"{value:.2f}" for value in scores[:, :, 0].mean(axis=0))
        rows.append(f"| {name} | {spread(scores[:, :, 0])} | {spread(scores[:, :, 1])} | {over} | {folds} |")
    return rows


def spread(scores: np.ndarray, sign: str = "") -> str:
    """Return the mean of `[seeds, folds]` and the standard deviation over seeds of the mean over folds."""
    means = scores.mean(axis=1)
    return f"{means.mean():{sign}.3f} ± {means.std(ddof=1):.3f}"


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with metadata.csv and the videos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once, one core each")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "fedvssl_weizmann", help="where runs are kept")
    arguments = parser.parse_args()
    jobs = [(method, fold, seed) for seed in arguments.seeds for fold in range(3) for method in METHODS]
    data, runs = arguments.data.resolve(), arguments.runs.resolve()
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {job: pool.submit(run, job, data, runs) for job in jobs}
        results = {job: future.result() for job, future in futures.items()}
    versions = results[jobs[0]]["versions"]
    text = [
        "# FedVSSL on the Weizmann actions: retrieval of training people's clips by other people's clips", "",
        *table(results, arguments.seeds), "",
        f"Mean over 3 folds and seeds {arguments.seeds}; ± is the standard deviation over seeds.", "",
        f"- date: {datetime.now(UTC):%Y-%m-%d}",
        f"- machine: {processor()}, {os.cpu_count()} cores, no accelerator; one core a run",
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"- command: `python -m {shlex.join(['benchmarks.fedvssl_weizmann', 'DIR', *sys.argv[2:]])}`",
    ]  # fmt: skip
    out = ROOT / "benchmarks" / "results" / "fedvssl_weizmann.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(text) + "\n")
    sys.stdout.write(out.read_text())


if __name__ == "__main__":
    main()
