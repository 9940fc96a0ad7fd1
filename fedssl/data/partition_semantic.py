"""Clients of similar pictures (Yuan 2022, "What Do We Mean by Generalization in Federated Learning?")."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.dataset import Dataset
from fedssl.data.partition import Parts
from fedssl.data.partition_sizes import check_enough, top_up
from fedssl.data.pixels import thumbnails
from fedssl.seeding import derive, generator

_ITERATIONS = 10
_SMALLEST_VARIANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Gaussians:
    """Gaussians with diagonal covariances, `means` and `variances` both `[number, dim]`."""

    means: NDArray[np.float64]
    variances: NDArray[np.float64]

    def divergence(self, other: "Gaussians") -> NDArray[np.float64]:
        """Return the Kullback-Leibler divergence of every one of these from every one of `other`, `[own, others]`."""
        logs = np.log(other.variances).sum(axis=1) - np.log(self.variances).sum(axis=1)[:, None]
        inverse = 1 / other.variances
        # (a - b)^2 is multiplied out: no array of [own, others, dim] is made
        squares = (self.variances + self.means**2) @ inverse.T - 2 * self.means @ (other.means * inverse).T
        squares += (other.means**2 * inverse).sum(axis=1)
        total: NDArray[np.float64] = (logs + squares - self.means.shape[1]) / 2
        return total


@dataclass(frozen=True, slots=True)
class Semantic:
    """Cluster each class, then give every client the clusters of all classes that look most alike.

    The clusters of a class are the components of a Gaussian mixture; those of the next class, in random order, go to
    the clients by the optimal bipartite matching under the Kullback-Leibler divergence from the cluster each client
    got last. In place of a pretrained network's, features are the principal components of the pixels, and covariances
    are diagonal. A class with fewer examples than there are clients goes to as many clients as it has examples.

    Attributes:
        num_clients: Number of clients, at least 1.
        num_components: Principal components of the pixels that are clustered, at least 1.
        min_examples: Every client gets at least this many examples; they come from the largest clients.
    """

    num_clients: int
    num_components: int = 16
    min_examples: int = 1

    def __post_init__(self) -> None:
        at_least(1, num_clients=self.num_clients)
        at_least(1, num_components=self.num_components, min_examples=self.min_examples)

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the sorted example indices of each client; ValueError if there are too few examples or pixels."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        check_enough(len(dataset), self.num_clients, min_examples=self.min_examples)
        rng = generator(seed, "partition", "semantic")
        with threadpool_limits(1):  # sums, and with them clusters, depend on the number of threads
            features = self._features(dataset)
            owners = self._owners(dataset.labels, features, rng, seed)
        parts = [np.flatnonzero(owners == client).tolist() for client in range(self.num_clients)]
        top_up(parts, self.min_examples, rng)
        return [np.sort(np.array(part, dtype=np.int64)) for part in parts]

    def _features(self, dataset: Dataset) -> NDArray[np.float64]:
        """Return the principal components of the pixels, `[num_examples, num_components]`."""
        from sklearn.decomposition import PCA

        pixels = thumbnails(dataset).astype(np.float64)
        if self.num_components > (most := min(pixels.shape)):
            raise ValueError(
                f"partition.num_components must be at most {most} ({len(pixels)} examples, "
                f"{pixels.shape[1]} values each), got {self.num_components}"
            )
        features: NDArray[np.float64] = PCA(self.num_components, svd_solver="covariance_eigh").fit_transform(pixels)
        return features

    def _owners(
        self, labels: NDArray[np.int64], features: NDArray[np.float64], rng: np.random.Generator, seed: int
    ) -> NDArray[np.int64]:
        """Return the client of each example."""
        from scipy.optimize import linear_sum_assignment

        everything, shape = _single(features), (self.num_clients, 1)
        latest = Gaussians(np.tile(everything.means, shape), np.tile(everything.variances, shape))
        owners = np.empty(len(labels), dtype=np.int64)
        for label in rng.permutation(np.unique(labels)):
            members = np.flatnonzero(labels == label)
            number = min(self.num_clients, len(members))
            clusters, gaussians = _mixture(features[members], number, derive(seed, "partition", "semantic", int(label)))
            clients, matched = linear_sum_assignment(latest.divergence(gaussians))
            owners[members] = clients[np.argsort(matched)][clusters]
            latest.means[clients], latest.variances[clients] = gaussians.means[matched], gaussians.variances[matched]
        return owners


def _single(features: NDArray[np.float64]) -> Gaussians:
    """Return the one Gaussian of all examples."""
    return Gaussians(features.mean(axis=0, keepdims=True), features.var(axis=0, keepdims=True) + _SMALLEST_VARIANCE)


def _mixture(features: NDArray[np.float64], number: int, seed: int) -> tuple[NDArray[np.int64], Gaussians]:
    """Return the component of each example `[n]`, and the components, of a Gaussian mixture."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    if number == 1:
        return np.zeros(len(features), dtype=np.int64), _single(features)
    mixture = GaussianMixture(
        number, covariance_type="diag", reg_covar=_SMALLEST_VARIANCE, max_iter=_ITERATIONS, random_state=seed % 2**32
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bounded search need not converge to divide
        clusters = mixture.fit_predict(features)
    return clusters.astype(np.int64), Gaussians(mixture.means_, mixture.covariances_)
