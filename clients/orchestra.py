"""Orchestra, client side: train towards the global centroids, then send those of the own features (Lubana 2022)."""

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from clients.local_training import LocalTraining, Outcome, Work
from fedssl.arrays import Arrays
from fedssl.checks import above, at_least
from fedssl.memory import Memory
from fedssl.objectives.clustering import local_centroids
from fedssl.objectives.orchestra import Orchestra
from fedssl.objectives.queue import Queue
from fedssl.seeding import generator, torch_stream
from fedssl.training.loop import Examples, Stream, make_batch
from fedssl.wire import TrainTask


@dataclass(frozen=True)
class OrchestraTraining(LocalTraining):
    """Local training between two clusterings: the server's centroids come, the centroids of the bank go.

    Until there are global centroids a client trains nothing and only clusters, with the model that came.

    What leaves a client beside the model are mean directions of `bank_size / local_clusters` features each.

    Attributes:
        local_clusters: Centroids that a client sends.
        cluster_iterations: Rounds of the k-means that makes them.
        epsilon: Of its assignments; 1 / epsilon is the paper's lambda.
        sinkhorn_iterations: Of each assignment.
    """

    local_clusters: int = 16
    cluster_iterations: int = 5
    epsilon: float = 0.04
    sinkhorn_iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, local_clusters=self.local_clusters)
        at_least(1, cluster_iterations=self.cluster_iterations, sinkhorn_iterations=self.sinkhorn_iterations)
        above(0, epsilon=self.epsilon)

    def begin(self, initial: Arrays, memory: Memory | None, task: TrainTask) -> Arrays:
        """Return what local training begins with, and the global centroids where there are any.

        Raises:
            ValueError: The server knows of no centroids.
        """
        if "centroids" not in task.extras:
            raise ValueError("the server sends no centroids; choose strategy=orchestra")
        centroids = {f"centroids.{name}": array for name, array in task.extras["centroids"].items()}
        return {**super().begin(initial, memory, task), **centroids}

    def train(self, work: Work) -> Outcome:
        """Train the model in place where there are global centroids, and cluster the bank.

        Raises:
            ValueError: The objective is another, or the client has fewer examples than local clusters.
        """
        objective = work.objective
        if not isinstance(objective, Orchestra):
            raise ValueError(f"client=orchestra needs objective=orchestra, got {type(objective).__name__}")
        if work.memory is None:
            objective.begin_round(work.model, first=True)
            self._fill(work.model, objective, work.examples, work.stream)
        outcome = super().train(work) if work.task.extras["centroids"] else Outcome({})
        local = self._cluster(objective.bank(work.model), work.stream).numpy()
        return Outcome(outcome.metrics, {"centroids": {"local": local}})

    def _fill(self, model: nn.ModuleDict, objective: Orchestra, examples: Examples, stream: Stream) -> None:
        """Fill the bank of a client that takes part for the first time, as far as its examples go."""
        shell = copy.deepcopy(model).train()  # the statistics of batch normalisation stay as they came
        device = next(model.parameters()).device
        rng = generator(stream.seed, "bank", stream.partition, stream.round)
        order = rng.permutation(len(examples.indices))[: objective.bank_size]
        with torch_stream(stream.seed, "bank", stream.partition, stream.round):
            for start in range(0, len(order), self.batch_size):
                places = order[start : start + self.batch_size]
                if len(places) >= objective.min_batch:
                    batch = make_batch(objective, examples, places, stream, self.epochs, device)
                    objective.bank(model).write(objective.features(shell, batch.views[0]))

    def _cluster(self, bank: Queue, stream: Stream) -> Tensor:
        """Return the centroids of the bank `[local_clusters, dim]`."""
        rng = generator(stream.seed, "clusters", stream.partition, stream.round)
        settings = (self.local_clusters, self.cluster_iterations, self.epsilon, self.sinkhorn_iterations)
        return local_centroids(bank.rows().cpu(), *settings, rng)
