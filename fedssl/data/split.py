"""Which examples are held out: seeded splits by label or by owner."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def check_fraction(test_fraction: float) -> None:
    """Raise a ValueError unless `test_fraction` is strictly between 0 and 1."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be above 0 and below 1, got {test_fraction}")


def check_channels(channels: int) -> None:
    """Raise a ValueError unless `channels` is 1 (grey) or 3 (RGB)."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")


def _held_out(count: int, fraction: float) -> int:
    """Return how many of `count` things to hold out: at least one, but never the last one."""
    return min(max(1, round(fraction * count)), count - 1)


def by_label(labels: Indices, test_fraction: float, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Hold out the same fraction of every class; a class of one example stays in the training part.

    Args:
        labels: `[num_examples]` int64.
        test_fraction: Part of each class that is held out, in (0, 1).
        rng: Chooses the examples.

    Returns:
        The sorted training and test indices.

    Raises:
        ValueError: `test_fraction` is out of range, or no class has two examples.
    """
    check_fraction(test_fraction)
    chosen = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: _held_out(len(members), test_fraction)])
    test = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
    if not len(test):
        raise ValueError(f"test_fraction must leave a test example, but none of {len(labels)} examples share a class")
    return np.setdiff1d(np.arange(len(labels)), test), test


def by_owner(
    owners: Sequence[str], test_owners: Sequence[str], test_fraction: float, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Hold out whole owners.

    Args:
        owners: `[num_examples]` owner names.
        test_owners: The owners to hold out; if empty, `test_fraction` of the owners are chosen.
        test_fraction: Part of the owners that is held out, in (0, 1).
        rng: Chooses the owners.

    Returns:
        The sorted training and test indices.

    Raises:
        ValueError: `test_fraction` is out of range, an owner is unknown, or a part would be empty.
    """
    check_fraction(test_fraction)
    names = sorted(set(owners))
    if len(names) < 2:
        raise ValueError(f"group must tell at least 2 owners apart, got {', '.join(names) or 'none'}")
    if unknown := sorted(set(test_owners) - set(names)):
        raise ValueError(f"test_owners must be among {', '.join(names)}, got {', '.join(unknown)}")
    if set(test_owners) == set(names):
        raise ValueError(f"test_owners must leave an owner to train on, got all {len(names)}")
    held = set(test_owners) or {names[i] for i in rng.permutation(len(names))[: _held_out(len(names), test_fraction)]}
    inside = np.array([owner in held for owner in owners])
    return np.flatnonzero(~inside), np.flatnonzero(inside)
