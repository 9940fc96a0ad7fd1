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
