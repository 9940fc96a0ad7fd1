"""Which examples an evaluation sees, or knows the labels of: seeded, stratified and nested subsets."""

import re

import numpy as np
from numpy.typing import NDArray

from fedssl.seeding import generator

_AMOUNT = re.compile(r"([1-9]\d*)(%| per class)")


def is_amount(amount: str) -> bool:
    """Return whether `amount` reads "N%", of at most 100, or "N per class"."""
    match = _AMOUNT.fullmatch(amount)
    return match is not None and (match[2] != "%" or int(match[1]) <= 100)


def labelled(labels: NDArray[np.int64], amount: str, seed: int) -> NDArray[np.int64]:
    """Return the places of the examples whose labels are known; a smaller amount is part of a larger one.

    Args:
        labels: `[num_examples]`.
        amount: "N%" of each class, rounded and at least one example, or "N per class".
        seed: Chooses the examples.

    Returns:
        Ascending places.

    Raises:
        ValueError: `amount` is neither.
    """
    if not is_amount(amount):
        raise ValueError(f'amount must be "N%" of at most 100, or "N per class", got {amount}')
    number = int(amount.split("%")[0].split(" ")[0])
    counts = np.bincount(labels)
    kept = np.maximum(1, np.rint(counts * (number / 100))) if amount.endswith("%") else np.full(len(counts), number)
    return np.flatnonzero(_ranks(labels, seed) < kept[labels])


def at_most(labels: NDArray[np.int64], count: int | None, seed: int) -> NDArray[np.int64]:
    """Return the places of `count` examples in which classes keep their shares, each with one if there is room.

    Args:
        labels: `[num_examples]`.
        count: None, or a number that is not below that of the examples, takes them all.
        seed: Chooses the examples.

    Returns:
        Ascending places; those of a smaller count are part of those of a larger one.
    """
    if count is None or count >= len(labels):
        return np.arange(len(labels))
    place_in_class = _ranks(labels, seed) / np.bincount(labels)[labels]
    return np.sort(np.lexsort((labels, place_in_class))[:count])


def _ranks(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the place `[num_examples]` of each example in a random order of its class."""
    order = generator(seed, "evaluation", "subset").permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - starts[labels[order]]
    return ranks
