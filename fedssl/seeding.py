"""Every random stream has a name: a seed is a hash of the run's seed and a path of purposes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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


@contextmanager
def torch_stream(root: int, *path: int | str) -> Iterator[None]:
    """Let PyTorch's own layers (initialisation, dropout) draw from the stream `path` inside the block.

    They draw from the default generator and take no other; its state outside the block is left as it was.
    """
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(root, *path))
        yield
