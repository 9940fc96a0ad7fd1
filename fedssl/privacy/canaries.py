"""Canaries: examples that secret coins put into a run or leave out (Steinke 2023, "Privacy Auditing with One Run")."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedssl.seeding import generator


@dataclass(frozen=True, slots=True)
class Canaries:
    """Whose presence an audit asks for.

    Attributes:
        indices: `[m]` rising indices of examples.
        included: `[m]` whether each is trained on.
    """

    indices: NDArray[np.int64]
    included: NDArray[np.bool_]

    @property
    def left_out(self) -> NDArray[np.int64]:
        """Indices of those that nobody trains on."""
        return self.indices[~self.included]


def throw(
    parts: Sequence[NDArray[np.int64]], fraction: float, seed: int, *, flipped: bool, coins: int | None = None
) -> Canaries:
    """Choose a share of each client's examples and throw a fair coin for each.

    Args:
        parts: Indices of each client's examples.
        fraction: Share that is chosen, rounded down.
        seed: Of the choice.
        flipped: Whether every coin is turned.
        coins: Seed of the coins; None: `seed`.
    """
    chosen = [
        generator(seed, "canaries", client).choice(part, int(fraction * len(part)), replace=False)
        for client, part in enumerate(parts)
    ]
    indices = np.unique(np.concatenate([*chosen, np.zeros(0, np.int64)]).astype(np.int64))
    heads = generator(seed if coins is None else coins, "coins").random(len(indices)) < 0.5
    return Canaries(indices, heads != flipped)
