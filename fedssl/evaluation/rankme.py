"""RankMe: how many directions the features use.

Garrido 2023, "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their
Rank".
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least


def rankme(features: NDArray[Any], eps: float = 0.0) -> float:
    """Return the exponential of the entropy of the singular values, which are scaled to sum to one.

    Args:
        features: `[n, d]`, not centred; the paper takes 25,600 rows or all.
        eps: Added to the shares, but not taken from their sum: 1e-7 gives the paper's own numbers, slightly above the
            rank for full-rank features.

    Returns:
        A number from 1 to the rank of `features`; 0 when all of them are zero.

    Raises:
        ValueError: `features` has no row, or `eps` is negative.
    """
    if not features.size:
        raise ValueError(f"features must have at least 1 row and column, got {list(features.shape)}")
    at_least(0, eps=eps)
    values = np.linalg.svd(np.asarray(features, dtype=np.float64), compute_uv=False)
    if not values[0] > 0:
        return 0.0
    shares = values / values.sum() + eps
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
