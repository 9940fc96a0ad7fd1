"""What the guarantees of a run say of one example, beside how much an attack shows of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from fedssl.privacy.audit.one_run import one_run_bound

CONFIDENCES = (0.95, 0.99)
VERDICT = 0.99
"""The confidence at which a guarantee counts as violated."""
_UNITS = ("example", "cell", "client")


@dataclass(frozen=True, slots=True)
class Claim:
    """An upper and the lower bounds on the epsilon of one example that is there or not.

    Attributes:
        unit: That the guarantee is of; "none" where there is no guarantee.
        epsilon: What the guarantee comes to for one example; None promises nothing.
        delta: The same; the lower bounds are at this delta.
        lower: Lower bound at each confidence.
    """

    unit: str
    epsilon: float | None
    delta: float
    lower: Mapping[float, float]

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON values."""
        return {"unit": self.unit, "epsilon": self.epsilon, "delta": self.delta, "lower": self.lower}

    @property
    def violated(self) -> bool:
        """Whether the attack shows more than the guarantee allows."""
        return self.epsilon is not None and self.lower[VERDICT] > self.epsilon


@dataclass(frozen=True, slots=True)
class Guesses:
    """How well attacks guessed which canaries were there.

    Attributes:
        num_canaries: Coins that were thrown.
        num_guesses: Of each attack.
        correct: Right guesses by the name of the attack.
    """

    num_canaries: int
    num_guesses: int
    correct: Mapping[str, int]

    def bound(self, delta: float, confidence: float) -> float:
        """Return the lower bound on epsilon by the best attack; each has its share of what is missing to 1."""
        each = 1 - (1 - confidence) / len(self.correct)
        return one_run_bound(self.num_canaries, self.num_guesses, max(self.correct.values()), delta, each)


def claims(statements: Sequence[Mapping[str, Any]] | None, guesses: Guesses) -> tuple[Claim, ...]:
    """Return every guarantee that covers an example, or one claim of nothing.

    Args:
        statements: Of the run, with "unit", "epsilon", "delta" and "adjacency"; None where it has none.
        guesses: Of the attacks.
    """
    covering = [each for each in statements or () if each["unit"] in _UNITS and each["epsilon"] is not None]
    promised: list[tuple[str, float | None, float]] = [_of_example(each) for each in covering]
    return tuple(
        Claim(unit, epsilon, delta, {level: guesses.bound(delta, level) for level in CONFIDENCES})
        for unit, epsilon, delta in promised or [("none", None, 0.0)]
    )


def _of_example(statement: Mapping[str, Any]) -> tuple[str, float, float]:
    """Return the unit, and the epsilon and the delta for one example of it.

    A cell or a client that lacks one example is another cell or client. Where the guarantee is about one that is there
    or not, that is two changes: one goes, the other comes.
    """
    unit, epsilon, delta = str(statement["unit"]), float(statement["epsilon"]), float(statement["delta"])
    if unit == "example" or statement["adjacency"] == "replace_one":
        return unit, epsilon, delta
    return unit, 2 * epsilon, min(1.0, (1 + exp(min(epsilon, 700.0))) * delta)
