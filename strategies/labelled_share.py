"""The mean in which clients with labels together have a share of their own (Fed-Consist, Yang et al. 2021).

"Federated semi-supervised learning for COVID region segmentation in chest CT using multi-national data from China,
Italy, Japan".
"""

from collections.abc import Collection, Iterator
from typing import Any, Literal

from fedssl.arrays import Arrays
from fedssl.checks import within
from fedssl.wire import NUM_LABELLED, LocalUpdate
from strategies.aggregation import WeightedMean
from strategies.averaging import Averaging


class LabelledShare(Averaging):
    """The mean of two means: that of the clients with labels, however few, and that of the clients without.

    In a round with clients of one kind it is the mean of these. A client that knows one label counts as one with
    labels. Integers take the maximum over both kinds.

    Args:
        share: Groups of tensors that are exchanged; None exchanges all.
        labelled_share: What the clients with labels count together, from 0 to 1; the others count the rest.
        weights: What a client counts among its kind, see `Averaging`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        share: Collection[str] | None = None,
        labelled_share: float = 0.5,
        weights: Literal["examples", "equal"] = "examples",
    ) -> None:
        within(0, 1, labelled_share=labelled_share)
        super().__init__(share, weights=weights)
        self.metrics = (NUM_LABELLED,)
        self.labelled_share = float(labelled_share)

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean of the means of both kinds."""
        means: dict[bool, WeightedMean] = {}
        for update in updates:
            kind = means.setdefault(update.metrics[NUM_LABELLED] > 0, WeightedMean())
            kind.add(update.arrays, self.weight(update))
        if len(means) == 1:
            return next(iter(means.values())).result()
        both = WeightedMean()
        both.add(means[True].result(), self.labelled_share)
        both.add(means[False].result(), 1 - self.labelled_share)
        return both.result()
