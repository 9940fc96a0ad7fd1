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
    chosen = arguments(__doc__, rounds=15, cohort=10, workers=2)
    arrays = model()
    with ray(returned, chosen["cohort"], chosen["workers"]) as grid:
        seconds = run(grid, arrays, chosen["cohort"], chosen["cohort"], chosen["rounds"] + 1).seconds
    ours = median(seconds) / chosen["cohort"]
    bare = median(least(arrays) for _ in range(chosen["rounds"]))
    row = [f"{num_bytes(arrays) / 1e6:.1f}", str(chosen["cohort"]), f"{ours:.4f}", f"{bare:.4f}", f"{ours / bare:.2f}"]
    header = ["model, MB", "cohort", "s a client a round", "NumPy, s", "ratio"]
    rounds = f"{chosen['rounds']} rounds on {chosen['workers']} Ray workers"
    note = f"Median of {rounds}; the slowest round took {max(seconds):.3f} s."
    report("payload", "Seconds a client beyond its own work", header, [row], [note])


if __name__ == "__main__":
    main()
