"""Small parts of large datasets in which every class counts the same."""

import numpy as np
from numpy.typing import NDArray


def balanced(labels: NDArray[np.int64], limit: int | None, name: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose examples so that classes differ by at most one, as far as each has enough.

    Args:
        labels: `[num_examples]` int64.
        limit: How many to choose; None for all.
        name: What an error calls `limit`.
        rng: Chooses the examples; of the same `rng`, a smaller choice is a part of a larger one.

    Returns:
        The sorted indices, `[limit]`.

    Raises:
        ValueError: There are fewer examples than `limit`.
    """
    if limit is None:
        return np.arange(len(labels))
    if limit > len(labels):
        raise ValueError(f"{name} must be at most the {len(labels)} examples there are, got {limit}")
    order = rng.permutation(len(labels))
    turns, classes = np.empty(len(labels), dtype=np.int64), np.empty(len(labels), dtype=np.int64)
    for place, label in enumerate(rng.permutation(np.unique(labels))):
        members = order[labels[order] == label]
        turns[members], classes[members] = np.arange(len(members)), place
    return np.sort(np.lexsort((classes, turns))[:limit])
