"""Orchestra, server side: averaging, and global centroids learned from those of the clients (Lubana et al. 2022)."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedssl.arrays import Arrays
from fedssl.checks import above, at_least
from fedssl.objectives.clustering import learn_centroids
from fedssl.seeding import generator
from fedssl.wire import LocalUpdate, TrainTask
from strategies.aggregation import WeightedMean
from strategies.base import Federated, Plan


class Orchestra(Federated):
    """The mean of the updates, weighted by examples, and centroids that divide the clients' own equally.

    The first round brings no centroids, so clients train nothing in it and only send theirs. From then on the global
    centroids are learned after each round, from where they were: the clients that did not take part in a round are in
    them still.

    Args:
        num_centroids: Global centroids, as many as the objective has.
        dim: Width of an embedding of the objective.
        local_clusters: Centroids that each client sends.
        steps: Of learning, a round.
        learning_rate: Of each step.
        temperature: Cosines with centroids are divided by it.
        epsilon: Of the equal-size assignment of clients' centroids; 1 / epsilon is the paper's lambda.
        sinkhorn_iterations: Of that assignment.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        num_centroids: int = 128,
        dim: int = 512,
        local_clusters: int = 16,
        steps: int = 500,
        learning_rate: float = 0.01,
        temperature: float = 0.1,
        epsilon: float = 0.04,
        sinkhorn_iterations: int = 10,
    ) -> None:
        super().__init__()
        at_least(1, num_centroids=num_centroids, dim=dim, local_clusters=local_clusters)
        at_least(1, steps=steps, sinkhorn_iterations=sinkhorn_iterations)
        above(0, learning_rate=learning_rate, temperature=temperature, epsilon=epsilon)
        self._shape = (num_centroids, dim)
        self._expected = {"centroids": {"local": np.zeros((local_clusters, dim), np.float32)}}
        self._learning = (steps, learning_rate, temperature, epsilon, sinkhorn_iterations)
        self._centroids: Tensor | None = None
        self._seed = 0

    def task(self, current: Arrays, round_number: int, plan: Plan) -> TrainTask:
        """Return what every client of the round is asked, with the global centroids once there are any."""
        self._seed = plan.seed
        centroids = {} if self._centroids is None else {"weight": self._centroids.numpy()}
        return TrainTask(round_number, plan.rounds, plan.seed, current, extras={"centroids": centroids})

    def extras(self, current: Arrays) -> Mapping[str, Arrays]:
        """Return the shape of the centroids that every client must send."""
        return self._expected

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the mean, and learn the global centroids from those of all clients of the round."""
        mean, local = WeightedMean(), []
        for update in updates:
            mean.add(update.arrays, update.num_examples)
            local.append(torch.tensor(update.extras["centroids"]["local"]))
        begin = self._drawn() if self._centroids is None else self._centroids
        self._centroids = learn_centroids(begin, torch.cat(local), *self._learning)
        return mean.result()

    def state(self) -> Mapping[str, Any]:
        """Return the global centroids."""
        return {} if self._centroids is None else {"centroids": self._centroids}

    def restore(self, state: Mapping[str, Any], current: Arrays) -> None:
        """Take the global centroids back."""
        self._centroids = state.get("centroids")

    def _drawn(self) -> Tensor:
        """Return the directions that learning begins with."""
        drawn = generator(self._seed, "centroids").standard_normal(self._shape)
        return torch.from_numpy(drawn).float()
