"""A draw of labelled examples with an exact number of every class."""

import numpy as np

from fedssl.data.deficiency import Holdings, Indices


def held(holdings: Holdings) -> Indices:
    """Return the sorted examples that some client holds."""
    return np.sort(np.concatenate([np.empty(0, np.int64), *holdings.values()]))


def draw(members: Indices, labels: Indices, wanted: Indices, rng: np.random.Generator) -> Indices:
    """Return the first `wanted` members of every class in a random order.

    The order depends on the members' labels alone, so a draw of fewer is part of a draw of more.

    Args:
        members: `[n]` numbers of examples.
        labels: `[n]` class of each member.
        wanted: `[classes]` examples to draw of each class, at most as many as it has members.
        rng: Chooses.

    Returns:
        `[wanted.sum()]` sorted members.
    """
    taken = [rng.permutation(members[labels == label])[:number] for label, number in enumerate(wanted)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *taken]))
