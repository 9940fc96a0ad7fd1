"""Expected calibration error (Naeini 2015, Guo 2017 "On Calibration of Modern Neural Networks")."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least


def calibration_error(probabilities: NDArray[Any], labels: NDArray[np.int64], bins: int = 15) -> float:
    """Return the mean gap between how sure a classifier is and how often it is right.

    Args:
        probabilities: `[n, num_classes]`, rows that sum to one.
        labels: `[n]`.
        bins: Equal bins of the confidence in [0, 1], each open below and closed above.

    Returns:
        A number in [0, 1]; 0 is best.

    Raises:
        ValueError: There is no row, rows and labels differ in number, or `bins` is below 1.
    """
    if not len(labels) or len(labels) != len(probabilities):
        raise ValueError(f"labels must be one of each row, got {len(labels)} for {len(probabilities)}")
    at_least(1, bins=bins)
    confidence = np.asarray(probabilities, dtype=np.float64).max(axis=1)
    gaps = (probabilities.argmax(axis=1) == labels) - confidence
    places = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(places, weights=gaps, minlength=bins)).sum() / len(labels))
