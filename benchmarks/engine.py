"""The grids against the same arithmetic in bare processes: the speed workload of pfl-research (Granqvist et al. 2024).

    python -m benchmarks.engine   # 4 minutes on 2 cores

A two-convolution network on 32x32 images, 1,000 users of 50 examples, 50 of them a round, one epoch, batch 10, SGD
0.1. The bare processes share memory, train every N-th user of the cohort and sum in place: no messages, no checks. Both
sides run in turn, several times; a ratio is the median round of the grid over that of as many bare processes.
"""

import multiprocessing
import time
from multiprocessing.sharedctypes import RawArray
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measure import Client, arguments, report, run
from fedssl.config import Engine
from fedssl.models import bundle
from fedssl.seeding import generator, torch_stream
from fedssl.simulation.engine import open_grid
from fedssl.wire import LocalUpdate, TrainTask

USERS, EXAMPLES, COHORT, BATCH, RATE = 1000, 50, 50, 10, 0.1


def network() -> nn.Module:
    """Return the network: two convolutions, pooling, two linear layers."""
    with torch_stream(0, "init"):
        return nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip


def train(model: nn.Module, user: int) -> None:
    """Train one user's epoch in place."""
    rng = generator(0, "user", user)
    images = torch.from_numpy(rng.integers(0, 256, (EXAMPLES, 3, 32, 32), np.uint8)).float() / 255
    labels = torch.from_numpy(rng.integers(0, 10, EXAMPLES))
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for start in range(0, EXAMPLES, BATCH):
        batch = slice(start, start + BATCH)
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


class Work:
    """A user's work behind the grid; the network is made once a process."""

    model: nn.Module | None = None

    def __call__(self, task: TrainTask, partition: int) -> LocalUpdate:
        """Train and return the tensors."""
        if self.model is None:
            torch.set_num_threads(1)
            self.model = network()
        bundle.load(self.model, task.arrays)
        train(self.model, partition)
        trained = {name: tensor.numpy() for name, tensor in self.model.state_dict().items()}
        return LocalUpdate(partition, task.round, trained, EXAMPLES, {})


def cohort(round_number: int) -> list[int]:
    """Return the users of a round."""
    return sorted(generator(0, "cohort", round_number).choice(USERS, COHORT, replace=False).tolist())


def bare_process(index: int, number: int, rounds: int, shared: tuple, barrier: object) -> None:
    """Train every `number`-th user of each cohort, and sum into this process's own part of shared memory."""
    torch.set_num_threads(1)
    weights, sums = (np.frombuffer(part, kind) for part, kind in zip(shared, (np.float32, np.float64), strict=True))
    model = network()
    parameters = list(model.parameters())
    bounds = np.cumsum([parameter.numel() for parameter in parameters])[:-1]
    totals = np.split(sums.reshape(number, -1)[index], bounds)
    received = np.split(weights, bounds)
    for round_number in range(1, rounds + 1):
        barrier.wait()
        for total in totals:
            total[:] = 0
        for user in cohort(round_number)[index::number]:
            for parameter, values in zip(parameters, received, strict=True):
                np.copyto(parameter.detach().numpy().reshape(-1), values)
            train(model, user)
            for parameter, total in zip(parameters, totals, strict=True):
                total += parameter.detach().numpy().reshape(-1)
        barrier.wait()


def bare(number: int, rounds: int) -> tuple[list[float], np.ndarray]:
    """Return the seconds of each round but the first in `number` bare processes, and the final weights."""
    initial = nn.utils.parameters_to_vector(network().parameters()).detach().numpy()
    context = multiprocessing.get_context("spawn")
    shared = (RawArray("f", len(initial)), RawArray("d", number * len(initial)))
    weights, sums = np.frombuffer(shared[0], np.float32), np.frombuffer(shared[1], np.float64).reshape(number, -1)
    weights[:] = initial
    barrier = context.Barrier(number + 1)
    processes = [context.Process(target=bare_process, args=(i, number, rounds, shared, barrier)) for i in range(number)]
    for process in processes:
        process.start()
    seconds = []
    for _ in range(rounds):
        barrier.wait()
        begun = time.perf_counter()
        barrier.wait()
        weights[:] = sums.sum(axis=0) / COHORT
        seconds.append(time.perf_counter() - begun)
    for process in processes:
        process.join()
    return seconds[1:], weights.copy()


def grid(engine: Engine, rounds: int) -> tuple[list[float], np.ndarray]:
    """Return the seconds of each round but the first on a grid, and the final weights."""
    model = network()
    initial = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with open_grid(engine, Client(Work()), USERS) as opened:
        clock = run(opened, initial, USERS, COHORT, rounds, EXAMPLES)
    return clock.seconds, np.concatenate([clock.arrays[name].ravel() for name, _ in model.named_parameters()])


def main() -> None:
    """Measure and write the table."""
    chosen = arguments(__doc__, rounds=4, repeats=3)
    engines = {
        "in one process": (Engine("local"), 1),
        "Ray, 1 worker": (Engine("ray", num_workers=1), 1),
        "Ray, 2 workers": (Engine("ray", num_workers=2), 2),
    }
    ours: dict[str, list[float]] = {name: [] for name in engines}
    theirs: dict[int, list[float]] = {1: [], 2: []}
    gap = 0.0
    for _ in range(chosen["repeats"]):
        finals = {}
        for number in theirs:
            seconds, finals[number] = bare(number, chosen["rounds"])
            theirs[number] += seconds
        for name, (engine, number) in engines.items():
            seconds, final = grid(engine, chosen["rounds"])
            ours[name] += seconds
            gap = max(gap, float(np.abs(final - finals[number]).max()))
    medians = {name: (median(ours[name]), median(theirs[number])) for name, (_, number) in engines.items()}
    rows = [[name, f"{mine:.2f}", f"{bare_s:.2f}", f"{mine / bare_s:.3f}"] for name, (mine, bare_s) in medians.items()]
    rounds = f"{chosen['repeats']} x {chosen['rounds'] - 1} rounds"
    note = (
        f"{COHORT} of {USERS} users a round; medians over {rounds}, each time after a first one. Largest difference "
        f"between the final weights of a grid and of the bare processes, which sum in another order: {gap:.1e}."
    )
    header = ["grid", "s a round", "bare, s a round", "ratio"]
    report("engine", "The grids against bare processes", header, rows, [note])


if __name__ == "__main__":
    main()
