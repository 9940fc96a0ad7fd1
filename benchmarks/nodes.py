"""Whether registered clients cost anything when they do not take part: rounds of 10 clients out of more and more.

    python -m benchmarks.nodes   # 2 minutes on 2 cores

The model is tiny and the client returns it, so that a round is nothing but the engine. The sizes take turns.
"""

from statistics import median

import numpy as np

from benchmarks.measure import arguments, ray, report, returned, run

SIZES = (10, 1_000, 100_000)


def main() -> None:
    """Measure and write the table."""
    chosen = arguments(__doc__, rounds=300, repeats=3, cohort=10, workers=2)
    arrays = {"backbone.w": np.zeros(100, np.float32)}
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(chosen["repeats"]):
        for size in SIZES:
            with ray(returned, size, chosen["workers"]) as grid:
                seconds[size] += run(grid, arrays, size, chosen["cohort"], chosen["rounds"] + 1).seconds
    first = median(seconds[SIZES[0]])
    rows = [[f"{size:,}", f"{median(taken):.5f}", f"{median(taken) / first:.3f}"] for size, taken in seconds.items()]
    rounds = f"{chosen['repeats']} x {chosen['rounds']} rounds"
    note = f"Cohort {chosen['cohort']}; medians over {rounds} on {chosen['workers']} Ray workers."
    report("nodes", "Registered clients", ["clients", "s a round", f"over {SIZES[0]} clients"], rows, [note])


if __name__ == "__main__":
    main()
