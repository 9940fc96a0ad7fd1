"""Clusters of equal size on the sphere, first on clients, then on the server: Orchestra (Lubana et al. 2022).

"Orchestra: Unsupervised Federated Learning via Globally Consistent Clustering".
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedssl.objectives.sinkhorn import sinkhorn

_MOMENTUM = 0.9


def assignment_loss(student: Tensor, teacher: Tensor, centroids: Tensor, temperature: float) -> Tensor:
    """Return the mean cross entropy, in nats, of the student's assignment to centroids against the teacher's.

    Args:
        student: `[batch, dim]` embeddings, of any length.
        teacher: `[batch, dim]` embeddings of the same examples, taken as they are.
        centroids: `[number, dim]`, of length 1.
        temperature: Cosines are divided by it.
    """
    targets = F.softmax(_cosines(teacher.detach(), centroids) / temperature, dim=1)
    return F.cross_entropy(_cosines(student, centroids) / temperature, targets)


def equal_clusters(plan: Tensor) -> Tensor:
    """Return a cluster for each example so that sizes differ by at most 1: the surest choose first.

    Taking the likeliest cluster of each instead would leave sizes to chance, and with them how many examples a centroid
    speaks for. Where the likeliest clusters happen to be of equal size, these are the same.

    Args:
        plan: `[n, k]` how well examples fit clusters, not below 0.

    Returns:
        `[n]` int64 in [0, k).
    """
    examples, number = plan.shape
    least, larger = divmod(examples, number)
    sizes = [0] * number
    clusters = [-1] * examples
    for place in plan.flatten().argsort(descending=True, stable=True).tolist():
        example, cluster = divmod(place, number)
        full = sizes[cluster] >= (least + 1 if larger > 0 else least)
        if clusters[example] >= 0 or full:
            continue
        clusters[example] = cluster
        sizes[cluster] += 1
        larger -= sizes[cluster] > least
    return torch.tensor(clusters)


def local_centroids(
    features: Tensor, number: int, iterations: int, epsilon: float, sinkhorn_iterations: int, rng: np.random.Generator
) -> Tensor:
    """Return the centroids of k-means on the sphere with clusters of equal size.

    Args:
        features: `[n, dim]`, of length 1.
        number: Clusters, at most n.
        iterations: Rounds of assigning examples and moving centroids.
        epsilon: Of the assignment by cosine, see `sinkhorn`.
        sinkhorn_iterations: Of each assignment.
        rng: Chooses the examples that centroids begin with.

    Returns:
        `[number, dim]`, of length 1; each the mean direction of n / number examples, rounded up or down.

    Raises:
        ValueError: There are fewer features than clusters.
    """
    if number > len(features):
        raise ValueError(f"local_clusters must be at most the {len(features)} features of a client, got {number}")
    centroids = features[torch.from_numpy(rng.choice(len(features), number, replace=False))]
    for _ in range(iterations):
        plan = sinkhorn(features @ centroids.T, epsilon, sinkhorn_iterations)
        members = F.one_hot(equal_clusters(plan), number).to(features.dtype)
        centroids = F.normalize(members.T @ features, dim=1)
    return centroids


def centroid_loss(
    centroids: Tensor, features: Tensor, temperature: float, epsilon: float, sinkhorn_iterations: int
) -> Tensor:
    """Return minus the mean cosine between the equal-size and the nearest-centroid assignment of features.

    From -1, both are the same (Genevay et al. 2019, "Differentiable Deep Clustering with Cluster Size Constraints").

    Args:
        centroids: `[number, dim]`, of length 1.
        features: `[n, dim]`, of any length.
        temperature: Of the nearest-centroid assignment.
        epsilon: Of the equal-size assignment, see `sinkhorn`.
        sinkhorn_iterations: Of that assignment.
    """
    cosines = _cosines(features, centroids)
    plan = sinkhorn(cosines, epsilon, sinkhorn_iterations)
    return -F.cosine_similarity(plan, F.softmax(cosines / temperature, dim=1), dim=1).mean()


def learn_centroids(
    centroids: Tensor,
    features: Tensor,
    steps: int,
    learning_rate: float,
    temperature: float,
    epsilon: float,
    sinkhorn_iterations: int,
) -> Tensor:
    """Return centroids after steps of gradient descent on `centroid_loss`, put back on the sphere after each.

    Args:
        centroids: `[number, dim]` where they begin, of any length.
        features: `[n, dim]` what they divide equally, of any length.
        steps: Of the descent, with a momentum of 0.9.
        learning_rate: Of each step.
        temperature: See `centroid_loss`.
        epsilon: See `centroid_loss`.
        sinkhorn_iterations: See `centroid_loss`.

    Returns:
        `[number, dim]`, of length 1.
    """
    learned = F.normalize(centroids, dim=1).requires_grad_()
    optimizer = torch.optim.SGD([learned], lr=learning_rate, momentum=_MOMENTUM)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        centroid_loss(learned, features, temperature, epsilon, sinkhorn_iterations).backward()
        optimizer.step()
        with torch.no_grad():
            learned.copy_(F.normalize(learned, dim=1))
    return learned.detach()


def _cosines(features: Tensor, centroids: Tensor) -> Tensor:
    """Return `[n, number]` products of features, made of length 1, with centroids, in float32 or better."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1) @ centroids.T
