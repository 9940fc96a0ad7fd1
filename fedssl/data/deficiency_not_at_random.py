"""Labels that are missing not at random: many of the first classes are known, few of the last.

The protocols are those of CADR (Hu et al., ICLR 2022, "On Non-Random Missing Labels in Semi-Supervised Learning") and
of PRG (Duan et al., ICCV 2023, "Towards Semi-supervised Learning with Non-random Missing Labels").
"""

from dataclasses import dataclass
from math import ceil, floor
from typing import ClassVar, Literal

import numpy as np

from fedssl.checks import at_least, one_of
from fedssl.data.deficiency import Holdings, Indices, Known
from fedssl.data.deficiency_draw import draw, held
from fedssl.seeding import generator

STEEPEST = 99_999  # the published search ends here
TINY = 1e-9  # powers of whole numbers that are whole numbers miss them by a last bit


@dataclass(frozen=True, slots=True)
class MissingNotAtRandom:
    """The labels of so many examples of each class are known, drawn over the whole federation.

    Attributes:
        mode: "cadr": `gamma` labels of the first class, falling geometrically to one of the last. "n0": `n0` labels of
            the first class, and as steep a fall as makes `num_labels` in all.
        gamma: Labels of the first class, at least 1, with "cadr"; None with "n0".
        n0: Labels of the first class, at least 1, with "n0"; None with "cadr".
        num_labels: Labels in all with "n0"; None with "cadr".

    Raises:
        ValueError: An argument is out of range, is missing with this mode, or has no part in it.
    """

    mode: Literal["cadr", "n0"]
    gamma: float | None = None
    n0: int | None = None
    num_labels: int | None = None
    on_devices: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of(("cadr", "n0"), mode=self.mode)
        at_least(1, gamma=self.gamma, n0=self.n0, num_labels=self.num_labels)
        for name, mode in (("gamma", "cadr"), ("n0", "n0"), ("num_labels", "n0")):
            if ((value := getattr(self, name)) is None) == (mode == self.mode):
                allowed = "a number" if value is None else "null"
                raise ValueError(f"{name} must be {allowed} where mode is {self.mode}, got {value}")

    def wanted(self, num_classes: int) -> Indices:
        """Return how many labels of each class are known; ValueError if `num_labels` cannot be made."""
        if self.gamma is not None:
            return cadr_counts(self.gamma, num_classes)
        return n0_counts(self.n0 or 0, self.num_labels or 0, num_classes)

    def __call__(self, labels: Indices, holdings: Holdings, num_classes: int, seed: int) -> Known:
        """Return which labels are known; ValueError if a class has fewer examples than are asked for."""
        wanted, together = self.wanted(num_classes), held(holdings)
        counts = np.bincount(labels[together], minlength=num_classes)
        name, value = ("gamma", self.gamma) if self.mode == "cadr" else ("n0", self.n0)
        for label in np.flatnonzero(counts < wanted):
            place = f"class {label} has {counts[label]} examples, not {wanted[label]}"
            raise ValueError(f"{name} must be lower ({place}), got {value}")
        rng = generator(seed, "labels", "missing_not_at_random")
        labelled = np.zeros(len(labels), dtype=np.bool_)
        labelled[draw(together, labels[together], wanted, rng)] = True
        return Known(labelled, np.empty(0, np.int64))


def cadr_counts(gamma: float, num_classes: int) -> Indices:
    """Return `[classes]` whole numbers that fall geometrically from `gamma` to 1, rounded up."""
    powers = (gamma ** (1 - label / max(1, num_classes - 1)) for label in range(num_classes))
    return np.array([ceil(power - TINY) for power in powers])


def n0_counts(n0: int, total: int, num_classes: int) -> Indices:
    """Return `[classes]` whole numbers that fall geometrically from `n0`, are 1 or more, and add up to `total`.

    The fall is the whole number, g in max(1, floor(n0 * g^(-class / classes))), with which they come nearest. What is
    left over is given to, or taken from, the inner classes in turn, one at a time, as in the public code of PRG; to or
    from the last two only where those can take or give no more.

    Raises:
        ValueError: "num_labels must be ..., got TOTAL".
    """
    if not n0 + num_classes - 1 <= total <= n0 * num_classes:
        allowed = f"between {n0 + num_classes - 1} and {n0 * num_classes} (n0={n0}, {num_classes} classes)"
        raise ValueError(f"num_labels must be {allowed}, got {total}")
    low, high = 1, STEEPEST  # totals fall as g grows: the first that is not above `total`, or the steepest
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if sum(_fall(n0, middle, num_classes)) > total else (low, middle)
    flatter, steeper = _fall(n0, max(1, low - 1), num_classes), _fall(n0, low, num_classes)
    counts = steeper if abs(sum(steeper) - total) < abs(sum(flatter) - total) else flatter
    _settle(counts, total, n0)
    return np.array(counts)


def _fall(n0: int, steepness: int, num_classes: int) -> list[int]:
    powers = (n0 * steepness ** (-label / num_classes) for label in range(num_classes))
    return [max(1, floor(power + TINY)) for power in powers]


def _settle(counts: list[int], total: int, most: int) -> None:
    """Change counts of all classes but the first by one in turn until they add up, each from 1 to `most`, in place."""
    step = 1 if sum(counts) < total else -1
    inner = max(1, len(counts) - 2)
    for group in (range(1, inner), range(inner, len(counts))):
        while (left := abs(total - sum(counts))) and (
            able := [label for label in group if 1 <= counts[label] + step <= most]
        ):
            for label in able[:left]:
                counts[label] += step
