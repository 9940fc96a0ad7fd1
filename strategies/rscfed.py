"""RSCFed: the mean of sub-consensus models of random subsets, in which what lies far away counts less (Liang 2022).

"RSCFed: Random Sampling Consensus Federated Semi-supervised Learning".
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.checks import above, at_least
from fedssl.seeding import generator
from fedssl.wire import NUM_LABELLED, LocalUpdate, TrainTask
from strategies.aggregation import WeightedMean
from strategies.base import Federated, Plan


class RSCFed(Federated):
    """The plain mean of `num_subsets` models, each the consensus of a random subset of the round's updates.

    An update's weight in a subset is `n * exp(-scale * d / n)`, with its examples n and its distance d from the
    subset's mean by examples: the sum over tensors of L2 distances. Clients with labels count `labelled_factor` times
    as much. The scale is `sup_scale` in a subset with such a client, else `dist_scale`. A client trains once in a round
    and its update serves every subset it is drawn for; the authors' code trains it again for each, from the same
    model. Subsets are of the updates that came: where these are no more than `subset_size` each subset is all of them.
    All updates of a round are held in memory. Integers take the maximum.

    Args:
        num_subsets: Subsets in a round.
        subset_size: Updates in a subset.
        labelled_factor: What a client with labels counts more.
        sup_scale: Of distances in subsets with a client with labels. It belongs to the size of clients and of models:
            100 was published for clients of about 7000 examples, and leaves a small client with labels no weight.
        dist_scale: Of distances in subsets without one.
        factor_twice: Whether the factor counts in the mean that distances are from as well, and so twice in the weight.
            The authors' code does so unless it is told `un_dist=avg`, as it is in the command that they publish.
        share: Groups of tensors that are exchanged; None exchanges all.
        reference_compat: Measure distances over every tensor, as the authors' code does, running statistics and step
            counters among them, whose values say nothing of how far models are apart.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        num_subsets: int = 3,
        subset_size: int = 5,
        labelled_factor: float = 6.0,
        sup_scale: float = 100.0,
        dist_scale: float = 1e4,
        factor_twice: bool = False,
        share: Collection[str] | None = None,
        reference_compat: bool = False,
    ) -> None:
        at_least(1, num_subsets=num_subsets, subset_size=subset_size)
        above(0, labelled_factor=labelled_factor)
        at_least(0, sup_scale=sup_scale, dist_scale=dist_scale)
        super().__init__(share, metrics=(NUM_LABELLED,))
        self.num_subsets = num_subsets
        self.subset_size = subset_size
        self.labelled_factor = labelled_factor
        self.sup_scale = sup_scale
        self.dist_scale = dist_scale
        self.factor_twice = factor_twice
        self.reference_compat = reference_compat
        self._seed = 0

    def task(self, current: Arrays, round_number: int, plan: Plan) -> TrainTask:
        """Return what every client of the round is asked."""
        self._seed = plan.seed
        return super().task(current, round_number, plan)

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean of the models of all subsets."""
        held = list(updates)
        rng = generator(self._seed, "subsets", round_number)
        total = np.zeros(len(held))  # the mean of means is one mean, with the sum of the weights
        for _ in range(self.num_subsets):
            drawn = np.sort(rng.choice(len(held), min(self.subset_size, len(held)), replace=False))
            total[drawn] += self.weights([held[place] for place in drawn])
        mean = WeightedMean()
        for update, weight in zip(held, total, strict=True):
            if weight > 0:
                mean.add(update.arrays, float(weight))
        return mean.result()

    def weights(self, subset: Sequence[LocalUpdate]) -> NDArray[np.float64]:
        """Return what each update of a subset counts in its consensus; they sum to 1."""
        numbers = np.array([update.num_examples for update in subset], np.float64)
        labelled = np.array([update.metrics[NUM_LABELLED] > 0 for update in subset])
        factors = np.where(labelled, self.labelled_factor, 1.0)
        amounts = numbers * factors if self.factor_twice else numbers
        distances = consensus_distances([self._measured(update.arrays) for update in subset], amounts)
        scale = self.sup_scale if labelled.any() else self.dist_scale
        # in logarithms: at the published scales every weight of a subset may be too small for a number
        logs = np.log(amounts) + np.log(factors) - scale * distances / numbers
        shares = np.exp(logs - logs.max())
        return np.asarray(shares / shares.sum())

    def _measured(self, arrays: Arrays) -> Arrays:
        """Return the tensors that distances are over."""
        if self.reference_compat:
            return arrays
        return {name: array for name, array in arrays.items() if name not in self.buffers}


def consensus_distances(models: Sequence[Arrays], amounts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each model the sum over its tensors of the L2 distance from the weighted mean of all.

    Args:
        models: Tensors by name; integers are taken for numbers.
        amounts: `[models]` what each counts in the mean.
    """
    distances = np.zeros(len(models))
    for name in models[0]:
        mean = np.average([arrays[name] for arrays in models], axis=0, weights=amounts)
        distances += [np.sqrt(np.square(arrays[name] - mean).sum()) for arrays in models]
    return distances
