"""What an objective promises about its examples: the contract that a privacy mechanism reads."""

from dataclasses import dataclass
from typing import Literal

Coupling = Literal["per_example", "batch", "queue", "global_state"]
_WEAKEST_FIRST: tuple[Coupling, ...] = ("per_example", "queue", "global_state", "batch")


def strongest(*couplings: Coupling) -> Coupling:
    """Return the coupling of what has several: that of a batch stays even where stored state is public or noised."""
    return max(couplings, key=_WEAKEST_FIRST.index)


@dataclass(frozen=True, slots=True)
class PrivacyContract:
    """What the gradient of one example depends on, and what holds values of other examples.

    Attributes:
        coupling: "per_example": on that example alone and on how many of its batch are labelled, in a network without
            batch normalisation; "batch": on the others of its batch; "queue": on stored embeddings of earlier examples;
            "global_state": on other statistics of earlier examples.
        private_groups: Groups of tensors that never leave the client: they hold values of its examples or name them.
        numbered: Whether the loss of an example depends on its number among the client's: without one the later ones
            have other numbers.
    """

    coupling: Coupling
    private_groups: frozenset[str] = frozenset()
    numbered: bool = False
