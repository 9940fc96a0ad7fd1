"""Clip the change that a client makes (McMahan 2018, "Learning Differentially Private Recurrent Language Models")."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from fedssl.arrays import Arrays

_TINY = float(np.finfo(np.float64).tiny)
Change = dict[str, NDArray[np.float64]]


def noised_names(arrays: Arrays, buffers: Collection[str]) -> tuple[str, ...]:
    """Return the sorted names of the trained tensors: running statistics and counters are no part of a norm."""
    return tuple(
        name for name in sorted(arrays) if name not in buffers and np.issubdtype(arrays[name].dtype, np.floating)
    )


def change(update: Arrays, current: Arrays, names: Collection[str]) -> Change:
    """Return update minus current of the tensors `names`, in double precision."""
    return {name: np.subtract(update[name], current[name], dtype=np.float64) for name in names}


def norm(vector: Change) -> float:
    """Return the L2 norm over all tensors together."""
    return float(np.sqrt(sum(float(np.vdot(values, values)) for values in vector.values())))


def clip_factor(length: float, bound: float) -> float:
    """Return what scales a vector of this length down to at most `bound`; 0 for one that is not finite."""
    return min(1.0, bound / max(length, _TINY)) if np.isfinite(length) else 0.0


def clipped(vector: Change, bound: float) -> Change:
    """Return `vector` scaled down to at most `bound`; one that is not finite becomes zero."""
    factor = clip_factor(norm(vector), bound)
    if factor == 0.0:
        return {name: np.zeros_like(values) for name, values in vector.items()}
    return {name: factor * values for name, values in vector.items()}


def blocks(names: Collection[str]) -> list[tuple[str, ...]]:
    """Return the names by group ("backbone", "projector", ...), each group's together."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split(".")[0], []).append(name)
    return [tuple(group) for group in groups.values()]
