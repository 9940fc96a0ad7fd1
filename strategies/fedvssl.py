"""FedVSSL: loss- and count-weighted averaging of the backbone (Rehman et al., ECCV 2022)."""

from collections.abc import Iterator
from typing import Any, Literal

from fedssl.arrays import Arrays
from fedssl.checks import one_of, within
from fedssl.wire import LocalUpdate
from strategies.aggregation import SoftmaxMean, WeightedMean, mix
from strategies.base import Federated


class FedVSSL(Federated):
    """Only the backbone is exchanged; heads stay with their clients.

    The next model is `alpha * loss-weighted + (1 - alpha) * example-weighted` mean, with weights softmax(-loss) and
    num_examples; with `beta=1` it is then averaged half and half with the previous model from round 2 on.

    `reference_compat` brings back what a public port does other than the paper says. "inverted_alpha": alpha is the
    share of the example-weighted mean, 1 - alpha that of the loss-weighted one. "concatenated": both, already scaled
    by their shares, are joined as lists where they should be added, and clients read the first list alone: losses say
    nothing, and every round leaves alpha times the example-weighted mean, of alpha 0 a backbone of zeros. The port has
    both defects; the second hides what else the first would do.

    Args:
        alpha: Share of the loss-weighted mean, from 0 to 1.
        beta: 1 averages with the previous model, 0 does not.
        reference_compat: A defect of the public code, or "none".

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        alpha: float = 0.9,
        beta: int = 1,
        reference_compat: Literal["none", "inverted_alpha", "concatenated"] = "none",
    ) -> None:
        within(0, 1, alpha=alpha)
        if beta not in (0, 1):
            raise ValueError(f"beta must be 0 or 1, got {beta}")
        one_of(("none", "inverted_alpha", "concatenated"), reference_compat=reference_compat)
        super().__init__(share=("backbone",), metrics=("loss",))
        self.alpha = float(alpha)
        self.beta = beta
        self.reference_compat = reference_compat

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mixed mean, averaged with `current` when beta is 1 and the round is not the first."""
        by_examples, by_loss = WeightedMean(), SoftmaxMean()
        for update in updates:
            by_examples.add(update.arrays, update.num_examples)
            by_loss.add(update.arrays, update.metrics["loss"])
        first, second = by_loss.result(), by_examples.result()
        if self.reference_compat != "none":
            first, second = second, first
        if self.reference_compat == "concatenated":
            second = {name: 0 * array for name, array in second.items()}
        mixed = mix(first, second, self.alpha)
        return mix(mixed, current, 0.5) if self.beta and round_number > 1 else mixed
