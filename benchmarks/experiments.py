"""Run many experiments side by side, read those that are done already, and say how scores spread over seeds."""

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
Result = Mapping[str, Any]
Words = Sequence[str]
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
"""Lets the GNU allocator keep what a step frees: asking for it anew takes a quarter of a small network's epoch."""


def complete(words: Words, directory: Path) -> Result:
    """Return the result of a run, from its directory if the same run was completed there.

    Raises:
        RuntimeError: The run failed, or its directory holds another run.
    """
    from fedssl.compose import load
    from fedssl.config import differing_keys
    from simulate import main

    words = [*words, "engine=local", f"run_dir={directory}"]
    result, config = directory / "result.json", directory / "config.yaml"
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        if not result.exists() and main([*words, "resume=auto"]) != 0:
            raise RuntimeError(f"{directory}: the run failed, or another one is there")
    read: Result = json.loads(result.read_text())
    other = differing_keys(config.read_text(), load(words).text)
    if read["status"] != "completed" or other:
        raise RuntimeError(f"{directory}: holds a run that failed or another one; remove it: {'; '.join(other)}")
    return read


def run_all(jobs: Mapping[str, Words], runs: Path, processes: int) -> dict[str, Result]:
    """Return the result of each job, whose name is that of its directory under `runs`; one core a run."""
    os.environ.update(KEEP_MEMORY)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = {name: pool.submit(complete, words, runs / name) for name, words in jobs.items()}
        results = {}
        for number, (name, future) in enumerate(futures.items(), 1):
            results[name] = future.result()
            sys.stderr.write(f"{number} of {len(jobs)}: {name}\n")
    return results


def spread(scores: Sequence[float], sign: str = "") -> str:
    """Return the mean over seeds and, after ±, the standard deviation."""
    return f"{np.mean(scores):{sign}.3f} ± {np.std(scores, ddof=1):.3f}"
