"""What the guarantees of a run say of one example, beside how much an attack shows of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedssl.privacy.audit.one_run import one_run_bound

CONFIDENCES = (0.95, 0.99)
VERDICT = 0.99
"""The confidence at which a guarantee counts as violated."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An upper and the lower bounds on the epsilon of one example that is there or not.

    Attributes:
        mechanism: That the guarantee is of; "none" where there is no guarantee.
        epsilon: Of one example, or of one unit of the mechanism; None promises nothing.
        delta: The same; the lower bounds are at this delta.
        lower: Lower bound at each confidence.
        most: What it would be with every guess right: an epsilon above this cannot be refuted.
    """

    mechanism: str
    epsilon: float | None
    delta: float
    lower: Mapping[float, float]
    most: Mapping[float, float]

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON values."""
        return asdict(self)

    @property
    def refutable(self) -> bool:
        """Whether right guesses alone would have shown more than the guarantee allows."""
        return self.epsilon is not None and self.most[VERDICT] > self.epsilon

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
        return self._bound(max(self.correct.values()), delta, confidence)

    def most(self, delta: float, confidence: float) -> float:
        """Return what the bound would be with every guess right."""
        return self._bound(self.num_guesses, delta, confidence)

    def claim(self, mechanism: str, epsilon: float | None, delta: float) -> Claim:
        """Return what these guesses show of a guarantee."""
        lower, most = ({level: bound(delta, level) for level in CONFIDENCES} for bound in (self.bound, self.most))
        return Claim(mechanism, epsilon, delta, lower, most)

    def _bound(self, correct: int, delta: float, confidence: float) -> float:
        each = 1 - (1 - confidence) / len(self.correct)
        return one_run_bound(self.num_canaries, self.num_guesses, correct, delta, each)


def claims(statements: Sequence[Mapping[str, Any]] | None, guesses: Guesses) -> tuple[Claim, ...]:
    """Return every guarantee of one example, or one claim of nothing.

    Args:
        statements: Of the run, with "unit", "epsilon", "delta" and "mechanism"; None where it has none.
        guesses: Of the attacks.
    """
    covering = [each for each in statements or () if each["unit"] == "example" and each["epsilon"] is not None]
    promised: list[tuple[str, float | None, float]] = [
        (str(each["mechanism"]), float(each["epsilon"]), float(each["delta"])) for each in covering
    ]
    return tuple(guesses.claim(*each) for each in promised or [("none", None, 0.0)])
