"""Canaries planted where noise is added: each pushes a random direction as far as one unit may (Andrew et al. 2024).

"One-shot Empirical Privacy Estimation for Federated Learning". Random directions are nearly at right angles to each
other and to whatever is trained, so they hardly change a model, and whoever sees the noised sums can tell how far these
went in each. A secret coin says which canaries are there; `fedssl.privacy.audit` guesses it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedssl.privacy.clipping import Change, blocks
from fedssl.privacy.noise import NoiseKey
from fedssl.seeding import generator

EXTRA = "planted"
"""The group of arrays in which a client sends what its noised steps show of the canaries in it."""
EVIDENCE = "evidence"


class Planted:
    """The canaries of one place where noise is added, and what is seen of them.

    Args:
        included: `[number]` whether each is there.
        shapes: Shape of each tensor that is noised.
        by_group: Whether the clip bounds each group of tensors ("backbone", "projector", ...) by itself.
        rng: Draws the directions.
    """

    def __init__(
        self,
        included: NDArray[np.bool_],
        shapes: Mapping[str, tuple[int, ...]],
        *,
        by_group: bool,
        rng: np.random.Generator,
    ) -> None:
        self._evidence = np.zeros(len(included))
        self._included, self._shapes = included, dict(shapes)
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        self._ends = dict(zip(shapes, ends.tolist(), strict=True))
        self._directions = rng.standard_normal((len(included), int(ends[-1])), np.float32)
        parts = blocks(shapes) if by_group else [tuple(shapes)]
        for part in parts:
            columns = [self._directions[:, self._span(name)] for name in part]
            lengths = np.sqrt(sum(np.einsum("ij,ij->i", own, own) for own in columns) * len(parts))
            for own in columns:
                own /= lengths[:, None]

    def _span(self, name: str) -> slice:
        end = self._ends[name]
        return slice(end - int(np.prod(self._shapes[name])), end)

    def push(self, length: float, rate: float, key: NoiseKey, *path: int | str) -> Change:
        """Return what the canaries add to a sum: those that are there and that coins draw, each as far as `length`.

        Args:
            length: How far one unit moves the sum at most.
            rate: Probability with which each unit is in the sum.
            key: What the coins are drawn from.
            path: Names the coins.
        """
        drawn = self._included & (key.generator(EXTRA, *path).random(len(self._included)) < rate)
        whole = np.zeros(self._directions.shape[1])
        for row in np.flatnonzero(drawn):  # one after the other: the same bits however many threads there are
            whole += self._directions[row]
        whole *= length
        return {name: whole[self._span(name)].reshape(shape) for name, shape in self._shapes.items()}

    def watch(self, released: Change, length: float, std: float, rate: float) -> None:
        """Add to the evidence what a noised sum shows.

        Args:
            released: The sum of what the units pushed, and noise, by the names of the tensors.
            length: How far one unit moves it at most.
            std: Standard deviation of the noise.
            rate: Probability with which each unit is in the sum.
        """
        whole = np.concatenate([released[name].ravel() for name in self._shapes])
        seen = np.array([(direction * whole).sum() for direction in self._directions]) / length
        self._evidence += log_ratio(seen, std / length, rate)

    def taken(self) -> NDArray[np.float64]:
        """Return the evidence since the last call, `[number]`: higher for a canary that looks as if it were there."""
        evidence, self._evidence = self._evidence, np.zeros_like(self._evidence)
        return evidence


@dataclass(frozen=True, slots=True)
class Planting:
    """How many canaries are planted in each scope of a ledger, and which of them are there.

    Attributes:
        number: Canaries in each scope.
        seed: Of the directions.
        coins: Seed of the coins.
        flipped: Whether every coin is turned.
    """

    number: int
    seed: int
    coins: int
    flipped: bool

    def included(self, scope: str) -> NDArray[np.bool_]:
        """Return which canaries of a scope are there, `[number]`."""
        return np.asarray((generator(self.coins, "planted coins", scope).random(self.number) < 0.5) != self.flipped)

    def plant(self, scope: str, shapes: Mapping[str, tuple[int, ...]], *, by_group: bool = False) -> Planted:
        """Return the canaries of a scope; see `Planted`."""
        rng = generator(self.seed, "planted", scope)
        return Planted(self.included(scope), shapes, by_group=by_group, rng=rng)


def log_ratio(seen: NDArray[np.float64], noise: float, rate: float) -> NDArray[np.float64]:
    """Return the logarithm of how much more probable a release is where a canary is there than where it is not.

    Args:
        seen: How far the release went in the direction of each canary, by how far each pushes it.
        noise: Standard deviation of the noise, by the same length; without noise `seen` itself is returned.
        rate: Probability with which a canary that is there is in the release.
    """
    if noise == 0:
        return seen
    ratio = (2 * seen - 1) / (2 * noise**2)
    return ratio if rate == 1 else np.logaddexp(np.log1p(-rate), np.log(rate) + ratio)
