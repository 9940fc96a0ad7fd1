"""What a client costs beyond its own work: an 11-million-parameter model goes out and comes back unchanged.

    python -m benchmarks.payload   # half a minute on 2 cores

The client returns the arrays it was sent; every second is the engine's: encoding, transport, checks and the mean.
Beside it what the same bytes cost in one process: NumPy copies them out and back, looks at every value and sums.
"""

import time
from statistics import median

import numpy as np

from benchmarks.measure import arguments, ray, report, returned, run
from fedssl.arrays import Arrays, num_bytes
from fedssl.seeding import generator

WORKERS = (1, 2)


def model() -> Arrays:
    """Return arrays with the shapes of a ResNet-18: 11.7 million parameters."""
    from torchvision.models import resnet18

    rng = generator(0, "weights")
    shapes = {name: tensor.shape for name, tensor in resnet18().state_dict().items() if tensor.is_floating_point()}
    return {name: rng.standard_normal(tuple(shape), np.float32) for name, shape in shapes.items()}


def least(arrays: Arrays) -> float:
    """Return the seconds of two copies, a look at every value and a weighted sum of `arrays`."""
    sums = {name: np.zeros(array.shape) for name, array in arrays.items()}
    begun = time.perf_counter()
    for name, array in arrays.items():
        back = array.copy().copy()
        if np.isfinite(back).all():
            sums[name] += 1.0 * back
    return time.perf_counter() - begun


def main() -> None:
    """Measure and write the table."""
    chosen = arguments(__doc__, rounds=15, cohort=10)
    arrays = model()
    taken: dict[int, list[float]] = {}
    for workers in WORKERS:
        with ray(returned, chosen["cohort"], workers) as grid:
            taken[workers] = run(grid, arrays, chosen["cohort"], chosen["cohort"], chosen["rounds"] + 1).seconds
    bare = median(least(arrays) for _ in range(chosen["rounds"]))
    ours = {workers: [one / chosen["cohort"] for one in seconds] for workers, seconds in taken.items()}
    rows = [
        [str(workers), f"{(middle := median(each)):.4f}", f"{min(each):.4f} to {max(each):.4f}", f"{bare:.4f}",
         f"{middle / bare:.2f}"]
        for workers, each in ours.items()
    ]  # fmt: skip
    header = ["workers", "s a client a round", "fastest to slowest round", "NumPy, s", "ratio"]
    note = f"{num_bytes(arrays) / 1e6:.1f} MB, cohort {chosen['cohort']}; medians of {chosen['rounds']} rounds."
    report("payload", "Seconds a client beyond its own work", header, rows, [note])


if __name__ == "__main__":
    main()
