"""How many examples each client gets: the checks and the sums that partitions share."""

import numpy as np
from numpy.typing import NDArray


def check_enough(num_examples: int, num_clients: int, **per_client: int) -> None:
    """Raise a ValueError unless every client can get an example, and as many as each of `per_client` asks for.

    Args:
        num_examples: Training examples there are.
        num_clients: The setting of that name.
        per_client: Other settings that are a number of examples of each client, by name.
    """
    if num_clients > num_examples:
        raise ValueError(
            f"partition.num_clients must be at most the {num_examples} training examples, got {num_clients}"
        )
    most, place = num_examples // num_clients, f"{num_examples} training examples over {num_clients} clients"
    for name, value in per_client.items():
        if value > most:
            raise ValueError(f"partition.{name} must be at most {most} ({place}), got {value}")


def top_up(parts: list[list[int]], min_examples: int, rng: np.random.Generator) -> None:
    """Move random examples of the largest clients to those below the minimum, in place.

    It takes at most `len(parts) * min_examples` moves, and ends if there are as many examples as that.
    """
    for part in parts:
        while len(part) < min_examples:
            largest = max(parts, key=len)
            part.append(largest.pop(int(rng.integers(len(largest)))))


def apportion(total: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return whole numbers that add up to `total`, each within 1 of its share (the method of largest remainders).

    Args:
        total: What is divided, at least 0.
        shares: `[clients]` at least 0, of any sum above 0.

    Returns:
        `[clients]` int64.
    """
    quotas = shares / shares.sum() * total
    whole: NDArray[np.int64] = np.floor(quotas).astype(np.int64)
    short = total - int(whole.sum())
    whole[np.argsort(whole - quotas, kind="stable")[:short]] += 1
    return whole
