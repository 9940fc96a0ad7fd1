"""Named arrays: what a model is between machines."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def sha256(arrays: Arrays) -> str:
    """Return the hash over the sorted names, dtypes, shapes and bytes of `arrays`."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{arrays[name].shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def num_bytes(arrays: Arrays) -> int:
    """Return the payload of `arrays` in bytes, without headers."""
    return sum(array.nbytes for array in arrays.values())


def not_finite(arrays: Arrays) -> str | None:
    """Return the name of the first array that holds a NaN or an infinity, or None."""
    return next((name for name, array in arrays.items() if not _is_finite(array)), None)


def _is_finite(array: NDArray[Any]) -> bool:
    if not np.issubdtype(array.dtype, np.inexact):
        return True
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):
        # One pass without a mask: the square of a finite array may overflow, only then is every element looked at.
        return bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())
