"""What an objective promises about its examples: the contract that a privacy mechanism reads."""

from dataclasses import dataclass
from typing import Literal

Coupling = Literal["per_example", "batch", "queue", "global_state"]


@dataclass(frozen=True, slots=True)
class PrivacyContract:
    """What the gradient of one example depends on, and what holds values of other examples.

    Attributes:
        coupling: "per_example": on that example alone, in a network without batch normalisation; "batch": on the others
            of its batch; "queue": on stored embeddings of earlier examples; "global_state": on other statistics of
            earlier examples.
        private_groups: Groups of tensors that never leave the client: they hold values of its examples or name them.
    """

    coupling: Coupling
    private_groups: frozenset[str] = frozenset()
