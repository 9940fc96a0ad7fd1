"""The best round of a run by a named score, and when to stop waiting for a better one."""

import math
from collections.abc import Sequence
from typing import Literal

from fedssl.report.records import RoundRecord

BestIs = Literal["max", "min"]


def best_round(
    records: Sequence[RoundRecord], score: str, best_is: BestIs, min_delta: float = 0.0
) -> RoundRecord | None:
    """Return the round with the best value of `score`; a later one must be better by more than `min_delta`."""
    sign = 1.0 if best_is == "max" else -1.0
    best, value = None, -math.inf
    for record in records:
        if score in record.scores and sign * record.scores[score] > value + (min_delta if best else 0.0):
            best, value = record, sign * record.scores[score]
    return best


def reason_to_stop(
    records: Sequence[RoundRecord], score: str, best_is: BestIs, patience: int, min_delta: float
) -> str | None:
    """Return why a run need not go on, after `patience` evaluations without a new best; None when it should."""
    best = best_round(records, score, best_is, min_delta)
    if best is None:
        return None
    since = sum(1 for record in records if record.round > best.round and score in record.scores)
    if since < patience:
        return None
    return f"{score} is best in round {best.round} ({best.scores[score]:.4g}), and not in {since} evaluations since"
