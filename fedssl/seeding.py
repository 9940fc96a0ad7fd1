"""Every random stream has a name: a seed is a hash of the run's seed and a path of purposes."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

_DRAWING = threading.RLock()
_STEP, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def derive(root: int, *path: int | str) -> int:
    """Return the 63-bit seed of the stream `path`, e.g. ("augment", partition, round, epoch, index).

    Args:
        root: The run's seed.
        path: Names and numbers; "1" and 1 are different streams.

    Returns:
        An integer in [0, 2**63), the same on every machine.
    """
    digest = hashlib.sha256(repr((int(root), *path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(root: int, *path: int | str) -> np.random.Generator:
    """Return the NumPy generator of the stream `path`."""
    return np.random.Generator(np.random.PCG64(derive(root, *path)))


def uniforms(root: int, *path: int | str, rows: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1), each a function of the stream, its row's number and its column alone.

    A generator for each example would take longer than a small network's step; this is the counter-based SplitMix64
    (Steele 2014, "Fast Splittable Pseudorandom Number Generators") for a whole batch at once.

    Args:
        root: The run's seed.
        path: Names and numbers of the stream.
        rows: `[n]` numbers of the rows, such as indices of examples; at least 0.
        columns: Numbers that each row takes.

    Returns:
        `[n, columns]`.
    """
    key = np.uint64(derive(root, *path))
    own = _mixed(key + _STEP * (rows.astype(np.uint64) + np.uint64(1)))
    counters = _STEP * np.arange(1, columns + 1, dtype=np.uint64)
    bits = _mixed(own[:, None] + counters) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


@contextmanager
def torch_stream(root: int, *path: int | str) -> Iterator[None]:
    """Let PyTorch's own layers (initialisation, dropout) draw from the stream `path` inside the block.

    They draw from the default generator and take no other; its state outside the block is left as it was. It is one
    for all threads, so another thread waits at its own block.
    """
    devices = list(range(torch.cuda.device_count()))
    with _DRAWING, torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(root, *path))
        yield
