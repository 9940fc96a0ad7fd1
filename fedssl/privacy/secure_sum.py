"""A sum whose terms cannot be read: the arithmetic of secure aggregation (Bonawitz et al. 2017), without its protocol.

Terms are whole numbers modulo 2^64, as they are under masks that cancel in the sum. Nothing is encrypted here.
"""

import numpy as np
from numpy.typing import NDArray

_SCALE = 2.0**32


class SecureSum:
    """Adds vectors by name and shows nothing but their sum.

    Args:
        shapes: Shape of each vector.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.__totals = {name: np.zeros(shape, np.uint64) for name, shape in shapes.items()}

    def add(self, vectors: dict[str, NDArray[np.float64]]) -> None:
        """Add one term, rounded to multiples of 2^-32."""
        for name, values in vectors.items():
            self.__totals[name] += np.rint(values * _SCALE).astype(np.int64).view(np.uint64).reshape(values.shape)

    def result(self) -> dict[str, NDArray[np.float64]]:
        """Return the sum of all terms, as long as it is below 2^31 everywhere."""
        return {name: total.view(np.int64).astype(np.float64) / _SCALE for name, total in self.__totals.items()}
