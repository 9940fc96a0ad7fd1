"""Three accountants of sampled Gaussian releases, each of them a bound from above.

Privacy loss distributions (Doroshenko et al. 2022, "Connect the Dots") and privacy random variables (Gopi et al. 2021,
"Numerical Composition of Differential Privacy") are tight; Renyi divergences (Mironov et al. 2019, "Renyi Differential
Privacy of the Sampled Gaussian Mechanism") are loose and cheap.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

Group = tuple[float, float, int]  # standard deviation of the noise over the clip norm, sampling rate, count
Groups = tuple[Group, ...]

_ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(11, 64), 128, 256, 512)
_INTERVAL = 1e-4  # of privacy losses, as dp-accounting has it
_GROUP_INTERVAL = 4e-4  # losses of a mixture take long to invert
_WIDE = 25.0  # losses beyond it are put on a coarser grid, which only rounds up further
_ENDLESS = 1e6  # a loss that counts as infinite
_PRV_ERROR = 0.005
_PRV_LARGEST = 200.0  # its grid, which is as fine everywhere, does not fit the memory beyond


def rdp_epsilon(groups: Groups, delta: float) -> float:
    """Return the larger epsilon of Opacus and dp-accounting, for a unit that is there or not."""
    from dp_accounting.rdp import compute_epsilon

    curves = [_rdp_curves(multiplier, rate) for multiplier, rate, _ in groups]
    totals = (
        [sum(group[2] * value for group, value in zip(groups, values, strict=True)) for values in zip(*of, strict=True)]
        for of in zip(*curves, strict=True)
    )
    return max(float(compute_epsilon(_ORDERS, total, delta)[0]) for total in totals)


@cache
def _rdp_curves(multiplier: float, rate: float) -> tuple[list[float], list[float]]:
    """Return the divergences of one release, at each order, as Opacus and as dp-accounting compute them."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    with _quiet():
        one = compute_rdp(q=rate, noise_multiplier=multiplier, steps=1, orders=_ORDERS)
        other = RdpAccountant(_ORDERS).compose(PoissonSampledDpEvent(rate, GaussianDpEvent(multiplier))).rdp
    # a divergence that is too small for a double comes out below zero
    return [max(0.0, float(value)) for value in one], [max(0.0, float(value)) for value in other]


def prv_epsilon(groups: Groups, delta: float) -> float:
    """Return the upper end of Opacus, for a unit that is there or not.

    Raises:
        ValueError: Its grid is too coarse or too large for these releases.
    """
    from opacus.accountants import PRVAccountant

    if rdp_epsilon(groups, delta) > _PRV_LARGEST:
        raise ValueError(f"accountant must be pld or rdp for an epsilon above {_PRV_LARGEST:g}, got prv")
    composed = PRVAccountant()
    composed.history = list(groups)
    try:
        with _quiet():
            return float(composed.get_epsilon(delta, eps_error=_PRV_ERROR))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"accountant must be pld or rdp for these releases, got prv: {error}") from error


def pld_epsilon(groups: Groups, delta: float, replace: bool) -> float:
    """Return the epsilon of dp-accounting, for a unit that is there or not, or one that may be replaced."""
    interval = _interval(groups * (4 if replace else 1), delta)  # twice the shift is four times as many releases
    if not interval:
        return math.inf
    plds = [_pld(multiplier, rate, replace, interval).self_compose(count) for multiplier, rate, count in groups]
    total = plds[0]
    for pld in plds[1:]:
        total = total.compose(pld)
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)  # some megabytes each
def _pld(multiplier: float, rate: float, replace: bool, interval: float) -> Any:  # noqa: ANN401  (not typed there)
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    relation = NeighboringRelation.REPLACE_ONE if replace else NeighboringRelation.ADD_OR_REMOVE_ONE
    return from_gaussian_mechanism(
        multiplier, value_discretization_interval=interval, sampling_prob=rate, neighboring_relation=relation
    )


@cache
def pld_group_epsilon(groups: Groups, delta: float, group_size: int) -> float:
    """Return the epsilon of `group_size` units that are present or absent together."""
    from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism
    from scipy.stats import binom

    apart = tuple((multiplier / group_size, 1 - (1 - rate) ** group_size, count) for multiplier, rate, count in groups)
    interval = _interval(apart, delta)
    if not interval:
        return math.inf
    total = None
    for multiplier, rate, count in groups:
        chances = {number: float(binom.pmf(number, group_size, rate)) for number in range(group_size + 1)}
        sampled = {number: chance for number, chance in chances.items() if chance > 0}
        pld = from_mixture_gaussian_mechanism(
            multiplier,
            sensitivities=[float(number) for number in sampled],
            sampling_probs=list(sampled.values()),
            value_discretization_interval=max(interval, _GROUP_INTERVAL),
        ).self_compose(count)
        total = pld if total is None else total.compose(pld)
    return math.inf if total is None else float(total.get_epsilon_for_delta(delta))


def _interval(groups: Groups, delta: float) -> float:
    """Return the step of the grid of losses, far below epsilon yet coarse enough for the memory; 0 where none is."""
    width = max(1 / multiplier**2 + 20 / multiplier for multiplier, _, _ in groups)
    width = max(width, rdp_epsilon(groups, delta)) if width < _ENDLESS else math.inf
    return _INTERVAL * 2.0 ** max(0, math.ceil(math.log2(width / _WIDE))) if width < _ENDLESS else 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the libraries are known to say, of which none costs safety; anything else is shown."""

    def unknown(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("_compute_log_a_frac failed to converge")  # that order is left out

    log = logging.getLogger("absl")
    log.addFilter(unknown)
    try:
        with warnings.catch_warnings():
            # an order that is not the best only widens the grid
            warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
            # log(1 - rate) at a rate of one: minus infinity is right, as every loss can occur
            warnings.filterwarnings(
                "ignore", "divide by zero encountered in log", RuntimeWarning, r"opacus\.accountants\.analysis\.prv\."
            )
            yield
    finally:
        log.removeFilter(unknown)
