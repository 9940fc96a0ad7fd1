"""Whether the server's memory grows with the cohort: peaks in rounds of 10 and of 100 clients, 11 million parameters.

    python -m benchmarks.memory   # a minute on 2 cores

The server's memory is its own (anonymous) memory and what Ray's object store holds for it, read every 10 ms.
"""

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import arguments, ray, report, returned, run
from benchmarks.payload import model

COHORTS = (10, 100)


def kilobytes(path: str, key: str) -> int:
    """Return a value of a file of /proc in kB."""
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


class Peak:
    """The highest value of a reading while a block runs."""

    def __init__(self, read: Callable[[], int]) -> None:
        self.value = 0
        self._read = read
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.value = max(self.value, self._read())

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def measure(cohort: int, workers: int, rounds: int) -> tuple[float, float]:
    """Return the peaks of the server's own memory and of the object store, in MB."""
    arrays = model()
    with ray(returned, cohort, workers) as grid:
        before = kilobytes("/proc/meminfo", "Shmem:")
        with (
            Peak(lambda: kilobytes("/proc/self/status", "RssAnon:")) as own,
            Peak(lambda: kilobytes("/proc/meminfo", "Shmem:") - before) as store,
        ):
            run(grid, arrays, cohort, cohort, rounds)
    return own.value / 1e3, store.value / 1e3


def main() -> None:
    """Measure each cohort in a process of its own and write the table."""
    chosen = arguments(__doc__, rounds=5, workers=2)
    peaks = {}
    for cohort in COHORTS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[cohort] = pool.apply(measure, (cohort, chosen["workers"], chosen["rounds"]))
    first = sum(peaks[COHORTS[0]])
    rows = [
        [str(cohort), f"{own:.0f}", f"{store:.0f}", f"{own + store:.0f}", f"{(own + store) / first:.3f}"]
        for cohort, (own, store) in peaks.items()
    ]
    header = ["cohort", "server, MB", "object store, MB", "together, MB", f"over cohort {COHORTS[0]}"]
    rounds = f"{chosen['rounds']} rounds on {chosen['workers']} Ray workers"
    note = f"Peaks of {rounds}; a model is 46.8 MB, its sum twice that."
    report("memory", "Peak memory of the server", header, rows, [note])


if __name__ == "__main__":
    main()
