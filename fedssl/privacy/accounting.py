"""What Gaussian releases cost together, and the noise that keeps within a target."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from scipy.optimize import brentq

from fedssl.checks import above, at_least, one_of, within
from fedssl.privacy import accountants
from fedssl.privacy.accountants import Groups

Adjacency = Literal["add_remove", "zero_out", "replace_one"]
Accountant = Literal["pld", "prv", "rdp"]

_LEAST_MULTIPLIER = 1e-6  # what has less noise counts as bare
_TOLERANCE = 1e-4  # of a calibrated multiplier, relative


@dataclass(frozen=True, slots=True)
class Release:
    """Gaussian releases that are alike.

    Attributes:
        noise_std: Standard deviation of the noise on the clipped sum, in the units of `clip`.
        clip: Bound of the L2 norm of what one unit adds to the sum.
        sampling_rate: Probability with which each unit takes part, drawn independently and in secret; 1 claims no
            amplification.
        count: How many releases.

    Raises:
        ValueError: A value is out of range.
    """

    noise_std: float
    clip: float
    sampling_rate: float
    count: int

    def __post_init__(self) -> None:
        at_least(0, noise_std=self.noise_std, count=self.count)
        above(0, clip=self.clip)
        within(0, 1, sampling_rate=self.sampling_rate)
        if math.isinf(self.noise_std) or math.isinf(self.clip):
            raise ValueError(f"noise_std and clip must be finite, got {self.noise_std} and {self.clip}")


def sensitivity(clip: float, adjacency: Adjacency) -> float:
    """Return how far neighbouring data move a sum of vectors that are clipped to `clip`, in L2 norm."""
    one_of(get_args(Adjacency), adjacency=adjacency)
    return 2 * clip if adjacency == "replace_one" else clip


def epsilon(
    releases: Sequence[Release],
    delta: float,
    *,
    accountant: Accountant = "pld",
    adjacency: Adjacency = "add_remove",
) -> float:
    """Return the epsilon of all releases together: 0 for none, infinite where one has no noise.

    It is the same to the last bit in whichever order the releases come.

    Args:
        releases: What was released; each may depend on those before it.
        delta: Of the guarantee, in (0, 1).
        accountant: "pld": tight; exact where nothing is sampled. "prv": tight, its upper end, 0.005 above. "rdp": the
            larger one of two implementations; loose, cheap.
        adjacency: "add_remove": one unit is there or not; "zero_out": it adds zero or not; "replace_one": it adds one
            vector or another.

    Raises:
        ValueError: An argument is out of range, or the accountant cannot bound these releases.
    """
    _check(delta, accountant, adjacency)
    return _epsilon(_grouped(releases), delta, accountant, adjacency == "replace_one")


def calibrate(
    target: float,
    delta: float,
    *,
    sampling_rate: float,
    count: int,
    accountant: Accountant = "pld",
    adjacency: Adjacency = "add_remove",
    spent: Sequence[Release] = (),
) -> float:
    """Return the least noise multiplier, noise over `sensitivity`, at which epsilon is not above the target.

    Args:
        target: Epsilon of `spent` and the new releases together.
        delta: As for `epsilon`.
        sampling_rate: Of the new releases.
        count: How many new releases, at least 1.
        accountant: As for `epsilon`.
        adjacency: As for `epsilon`.
        spent: Releases that are charged already.

    Returns:
        The multiplier, at most 0.0001 of itself too large.

    Raises:
        ValueError: An argument is out of range; `spent` leaves nothing of the target; or so rarely takes a unit part
            that its taking part is within delta.
    """
    _check(delta, accountant, adjacency)
    above(0, target=target, sampling_rate=sampling_rate)
    at_least(1, count=count)
    if 1 - (1 - sampling_rate) ** count <= delta:
        raise ValueError(f"delta must be below the probability that a unit is sampled, got {delta}")
    used = epsilon(spent, delta, accountant=accountant, adjacency=adjacency)
    if used >= target:
        raise ValueError(f"target must be above the epsilon that is spent, {used:.4g}, got {target}")

    def cost(multiplier: float) -> float:
        release = Release(multiplier * sensitivity(1.0, adjacency), 1.0, sampling_rate, count)
        return epsilon([*spent, release], delta, accountant=accountant, adjacency=adjacency)

    high = gaussian_noise_multiplier(target, delta) * math.sqrt(count)  # enough where nothing is spent or sampled
    while cost(high) > target:
        high *= 2
        if high > 1e9:
            raise ValueError(f"target must be above the epsilon that is spent, {used:.4g}, by more, got {target}")
    low = high / 1.5  # small steps: the less noise, the longer the accountants take
    while cost(low) <= target:
        high, low = low, low / 1.5
    root = brentq(
        lambda exponent: math.log(max(cost(math.exp(exponent)), 1e-9 * target) / target),
        math.log(low),
        math.log(high),
        xtol=_TOLERANCE / 10,
    )
    multiplier = math.exp(root)
    while cost(multiplier) > target:
        multiplier *= 1 + _TOLERANCE / 5
    return float(multiplier)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the exact epsilon of telling N(0, 1) from N(mu, 1): releases without sampling.

    `mu` is the square root of the number of releases over their noise multiplier (Balle and Wang 2018, "Improving the
    Gaussian Mechanism").

    Raises:
        ValueError: An argument is out of range.
    """
    from dp_accounting import get_epsilon_gaussian

    at_least(0, mu=mu)
    _check_delta(delta)
    return float(get_epsilon_gaussian(1 / mu, delta)) if mu else 0.0


def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """Return the noise multiplier of one release without sampling: `1 / mu` at which `gaussian_epsilon` is `epsilon`.

    Raises:
        ValueError: An argument is out of range.
    """
    from dp_accounting import get_sigma_gaussian

    above(0, epsilon=epsilon)
    _check_delta(delta)
    return float(get_sigma_gaussian(epsilon, delta))


def group_epsilon(releases: Iterable[Release], delta: float, group_size: int) -> float:
    """Return the epsilon of units that are present or absent together.

    How many of them are sampled is binomial, and each moves the sum by `clip`: a mixture of Gaussians against one.

    Args:
        releases: Each with the norm and the sampling rate of one unit.
        delta: Of the guarantee, in (0, 1).
        group_size: Units in a group, at least 1.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_delta(delta)
    at_least(1, group_size=group_size)
    groups = _grouped(releases)
    if not groups or groups[0][0] < _LEAST_MULTIPLIER:
        return math.inf if groups else 0.0
    if all(rate == 1 for _, rate, _ in groups):
        return gaussian_epsilon(group_size * _mu(groups, replace=False), delta)
    return accountants.pld_group_epsilon(groups, delta, group_size)


def _check(delta: float, accountant: str, adjacency: str) -> None:
    _check_delta(delta)
    one_of(get_args(Accountant), accountant=accountant)
    one_of(get_args(Adjacency), adjacency=adjacency)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, got {delta}")


def _grouped(releases: Iterable[Release]) -> Groups:
    """Merge what is alike; equal ratios of noise and clip count as equal although they were rounded apart."""
    counts: Counter[tuple[float, float]] = Counter()
    for release in releases:
        if release.count and release.sampling_rate:
            counts[float(f"{release.noise_std / release.clip:.12g}"), float(release.sampling_rate)] += release.count
    return tuple((multiplier, rate, count) for (multiplier, rate), count in sorted(counts.items()))


@cache
def _epsilon(groups: Groups, delta: float, accountant: Accountant, replace: bool) -> float:
    if not groups or groups[0][0] < _LEAST_MULTIPLIER:
        return math.inf if groups else 0.0
    sampled = any(rate < 1 for _, rate, _ in groups)
    if accountant == "pld":
        if sampled:
            return accountants.pld_epsilon(groups, delta, replace)
        return gaussian_epsilon(_mu(groups, replace), delta)
    if replace:
        if sampled:
            raise ValueError(f"accountant must be pld for replace_one under sampling, got {accountant}")
        groups = tuple((multiplier / 2, rate, count) for multiplier, rate, count in groups)
    return (accountants.rdp_epsilon if accountant == "rdp" else accountants.prv_epsilon)(groups, delta)


def _mu(groups: Groups, replace: bool) -> float:
    """Return the distance, in standard deviations, of the two Gaussians that releases without sampling amount to."""
    return math.hypot(*((1 + replace) * math.sqrt(count) / multiplier for multiplier, _, count in groups))
