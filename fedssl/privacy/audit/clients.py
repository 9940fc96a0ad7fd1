"""What the global models, or the updates, of a federation betray about who took part (Andrew et al. 2024).

"One-shot Empirical Privacy Estimation for Federated Learning": random directions are canaries at the level of clients.
"""

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import above, at_least
from fedssl.evaluation.similarity import normalised


def participation(aggregates: NDArray[Any], updates: NDArray[Any]) -> float:
    """Return how far the published updates went in a client's directions, summed over the rounds.

    Args:
        aggregates: `[rounds, dim]` what the server published of each round.
        updates: `[rounds, dim]` the client's own updates, computed anew from its data at each round's model.

    Raises:
        ValueError: The shapes differ.
    """
    if aggregates.shape != updates.shape or aggregates.ndim != 2:
        shapes = f"{list(aggregates.shape)} and {list(updates.shape)}"
        raise ValueError(f"aggregates and updates must be [rounds, dim], got {shapes}")
    return float((normalised(updates) * aggregates).sum())


def shares(aggregate: NDArray[Any], updates: NDArray[Any]) -> NDArray[np.float64]:
    """Return how far a published update went in each client's direction and in no other's, `[clients]`.

    Clients that learn the same go the same way, whoever took part; these are the least-squares coefficients of all
    their directions together, for which the updates of all must be known.

    Args:
        aggregate: `[dim]` what the server published of a round.
        updates: `[clients, dim]` the clients' own updates, computed anew from their data at the round's model.

    Raises:
        ValueError: The shapes differ.
    """
    if updates.ndim != 2 or aggregate.shape != updates.shape[1:]:
        shapes = f"{list(aggregate.shape)} and {list(updates.shape)}"
        raise ValueError(f"aggregate and updates must be [dim] and [clients, dim], got {shapes}")
    directions = normalised(updates)
    # through the products of all pairs: the directions themselves may be millions long
    return np.asarray(np.linalg.pinv(directions @ directions.T, hermitian=True) @ (directions @ aggregate))


def participation_auc(noise_multiplier: float, rounds: int = 1) -> float:
    """Return the area under the curve of `participation` where updates are as long as the clip norm: the best possible.

    Args:
        noise_multiplier: Standard deviation of the noise by the clip norm.
        rounds: Rounds in which the client is either always there or never.

    Raises:
        ValueError: An argument is out of range.
    """
    from scipy.special import ndtr

    above(0, noise_multiplier=noise_multiplier)
    at_least(1, rounds=rounds)
    return float(ndtr(sqrt(rounds / 2) / noise_multiplier))


def source_accuracy(losses: NDArray[Any], owners: NDArray[np.int64]) -> float:
    """Return how often the client whose model has the least loss of an example is its owner; chance is 1 / clients.

    Hu et al. 2021, "Source Inference Attacks in Federated Learning".

    Args:
        losses: `[clients, examples]` of each client's model.
        owners: `[examples]`.

    Raises:
        ValueError: The shapes do not fit, or there is no example.
    """
    if losses.ndim != 2 or not len(owners) or losses.shape[1:] != owners.shape:
        raise ValueError(f"losses must be [clients, {len(owners)} examples, at least 1], got {list(losses.shape)}")
    return float((losses.argmin(axis=0) == owners).mean())


def canary_directions(number: int, dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return random directions of unit length, `[number, dim]`: the updates of canary clients, by the clip norm."""
    return normalised(rng.normal(size=(number, dim)))


def canary_cosines(movement: NDArray[Any], directions: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine of how far the model moved, `[dim]`, with each canary's direction, `[number, dim]`.

    That of a canary that took no part is normal, with mean 0 and variance 1 / dim.
    """
    return np.asarray(normalised(directions) @ normalised(movement[None])[0])


def canary_epsilon(included: NDArray[Any], delta: float) -> float:
    """Return an estimate of epsilon, not a bound, from the cosines of canaries that took part.

    A normal distribution is fitted to them; what is estimated is the Gaussian mechanism that shifts by as many standard
    deviations.

    Args:
        included: `[number]` cosines, of at least two canaries and not all the same.
        delta: Of the guarantee.

    Raises:
        ValueError: An argument is out of range.
    """
    from dp_accounting import get_epsilon_gaussian

    at_least(2, **{"number of included": len(included)})
    spread = float(included.std(ddof=1))
    above(0, delta=delta, **{"spread of included": spread})
    shift = float(included.mean()) / spread
    return 0.0 if shift <= 0 else float(get_epsilon_gaussian(1 / shift, delta))
