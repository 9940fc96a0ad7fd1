"""A lower bound on epsilon from many trainings with and without one example (Jagielski, Ullman & Oprea 2020).

"Auditing Differentially Private Machine Learning: How Private is Private SGD?", with the intervals of Clopper & Pearson
(1934).
"""

from math import inf, log

from fedssl.checks import at_least, within


def many_runs_bound(
    true_positives: int,
    false_positives: int,
    num_in: int,
    num_out: int,
    delta: float = 0.0,
    confidence: float = 0.95,
) -> float:
    """Return the epsilon that trainings exceed, given how often an attack says that an example was there.

    A guarantee limits both how often the attack is right where the example was and where it was not; the two limits are
    the same but for the roles of in and out, and the stronger is returned.

    Args:
        true_positives: Trainings with the example in which the attack says so.
        false_positives: Trainings without it in which the attack says so.
        num_in: Trainings with the example.
        num_out: Trainings without it.
        delta: Of the guarantee that is tested.
        confidence: Probability that the bound holds; each of the two rates takes half of what is missing to 1.

    Returns:
        The bound, 0 where nothing is refuted.

    Raises:
        ValueError: An argument is out of range.
    """
    within(0, 1, delta=delta, confidence=confidence)
    each = 1 - (1 - confidence) / 2
    hits = rate_at_least(true_positives, num_in, each)
    false_alarms = rate_at_most(false_positives, num_out, each)
    return max(0.0, _log_ratio(hits - delta, false_alarms), _log_ratio(1 - false_alarms - delta, 1 - hits))


def rate_at_least(successes: int, trials: int, confidence: float) -> float:
    """Return what the probability of a success exceeds with the given confidence, 0 without a success.

    Raises:
        ValueError: There is no trial, or there are more successes than trials.
    """
    return 1 - rate_at_most(trials - successes, trials, confidence)


def rate_at_most(successes: int, trials: int, confidence: float) -> float:
    """Return what the probability of a success stays below with the given confidence, 1 without a failure.

    Raises:
        ValueError: There is no trial, or there are more successes than trials.
    """
    from scipy.stats import beta

    at_least(1, trials=trials)
    within(0, trials, successes=successes)
    return 1.0 if successes == trials else float(beta.ppf(confidence, successes + 1, trials - successes))


def _log_ratio(above: float, below: float) -> float:
    if above <= 0:
        return 0.0
    return log(above / below) if below > 0 else inf
