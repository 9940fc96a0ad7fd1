"""How well scores tell members from non-members: the numbers and the curve of a membership attack.

Carlini et al. 2022, "Membership Inference Attacks From First Principles": what counts is the true-positive rate at a
low false-positive rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least, within
from fedssl.privacy.audit.many_runs import rate_at_least, rate_at_most
from fedssl.seeding import generator

LOW_RATES = (0.001, 0.01)
_LARGEST_EXPONENT = 700.0  # of a double


@dataclass(frozen=True, slots=True)
class Attack:
    """What one score per example tells of membership.

    Attributes:
        auc: Probability that a member scores above a non-member; equal scores count a half.
        interval: Bootstrap interval of `auc`.
        balanced_accuracy: Mean of both rates of right answers, at the best threshold.
        advantage: Greatest difference of true- and false-positive rate.
        tpr_at: The greatest true-positive rate at which the false-positive rate is not above each number.
        true_positives: `[num_thresholds + 1]` members at or above each threshold, from the highest; begins with 0.
        false_positives: The same of non-members.
    """

    auc: float
    interval: tuple[float, float]
    balanced_accuracy: float
    advantage: float
    tpr_at: Mapping[float, float]
    true_positives: NDArray[np.int64] = field(repr=False, compare=False)
    false_positives: NDArray[np.int64] = field(repr=False, compare=False)

    @property
    def rates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """False- and true-positive rates `[num_thresholds + 1]`, ascending."""
        return self.false_positives / self.false_positives[-1], self.true_positives / self.true_positives[-1]

    def to_dict(self) -> dict[str, object]:
        """Return the numbers without the curve."""
        return {
            "auc": self.auc,
            "auc_interval": self.interval,
            "balanced_accuracy": self.balanced_accuracy,
            "advantage": self.advantage,
            "tpr_at": self.tpr_at,
        }

    def violates(self, epsilon: float, delta: float, confidence: float = 0.99) -> bool:
        """Return whether a true-positive rate is above e^epsilon times the false-positive rate plus delta.

        Thresholds are set at the scores of the 1st, 2nd, 4th, 8th, ... non-member, each with its share of what is
        missing to `confidence`; a false-positive rate that was chosen by rank has exactly the interval of Clopper and
        Pearson. Scores count as independent, as they are where each comes from a training of its own.
        """
        num_in, num_out = int(self.true_positives[-1]), int(self.false_positives[-1])
        ranks = 2 ** np.arange(num_out.bit_length())
        each = 1 - (1 - confidence) / (2 * len(ranks))
        factor = exp(min(epsilon, _LARGEST_EXPONENT))
        for rank in ranks.tolist():
            # above the score of that non-member: fewer than `rank` others, also where some are equal
            last = int(np.searchsorted(self.false_positives, rank)) - 1
            false_alarms = rate_at_most(rank - 1, num_out, each)
            if rate_at_least(int(self.true_positives[last]), num_in, each) > factor * false_alarms + delta:
                return True
        return False


def attack(
    members: NDArray[Any],
    non_members: NDArray[Any],
    *,
    low_rates: Sequence[float] = LOW_RATES,
    seed: int = 0,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> Attack:
    """Return what the scores tell.

    Args:
        members: `[num_members]` scores, higher for what looks trained on.
        non_members: `[num_non_members]` scores.
        low_rates: False-positive rates at which the true-positive rate is wanted.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap; examples are drawn anew within members and within non-members.
        confidence: Of the interval.

    Raises:
        ValueError: There is no member or no non-member, a score is not a number, or an argument is out of range.
    """
    for name, scores in (("members", members), ("non_members", non_members)):
        if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
            raise ValueError(f"{name} must be numbers, at least one, got {list(scores.shape)}")
    at_least(1, num_resamples=num_resamples)
    within(0, 1, confidence=confidence, **{f"low_rates[{place}]": rate for place, rate in enumerate(low_rates)})
    values, places = np.unique(np.concatenate((members, non_members)), return_inverse=True)
    own, other = places[: len(members)], places[len(members) :]
    true_positives, false_positives = (_at_or_above(part, len(values)) for part in (own, other))
    rates = true_positives / len(members), false_positives / len(non_members)
    gap = float((rates[0] - rates[1]).max())
    tpr_at = {rate: float(rates[0][rates[1] <= rate].max()) for rate in low_rates}
    rng = generator(seed, "audit", "bootstrap")
    aucs = [_auc(_drawn(own, rng), _drawn(other, rng), len(values)) for _ in range(num_resamples)]
    low, high = np.quantile(aucs, ((1 - confidence) / 2, (1 + confidence) / 2)).tolist()
    auc = _auc(own, other, len(values))
    return Attack(auc, (low, high), (1 + gap) / 2, gap, tpr_at, true_positives, false_positives)


def _at_or_above(places: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    counts = np.bincount(places, minlength=number)[::-1]
    return np.concatenate(([0], np.cumsum(counts)))


def _drawn(places: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    return places[rng.integers(0, len(places), len(places))]


def _auc(members: NDArray[np.int64], non_members: NDArray[np.int64], number: int) -> float:
    """Return the area under the curve of ranks below `number`."""
    own, other = np.bincount(members, minlength=number), np.bincount(non_members, minlength=number)
    below = np.cumsum(other) - other / 2
    return float(own @ below / (len(members) * len(non_members)))
