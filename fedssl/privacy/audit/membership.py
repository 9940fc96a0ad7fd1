"""Scores by which an encoder betrays its training examples: EncoderMI (Liu et al. 2021) and simpler ones.

"EncoderMI: Membership Inference against Pre-trained Encoders in Contrastive Learning": views of a member lie closer
together. Every score is higher for what looks trained on.
"""

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.evaluation.features import evaluating
from fedssl.evaluation.similarity import normalised
from fedssl.models.heads import mlp
from fedssl.objectives.objective import Batch, Objective
from fedssl.seeding import torch_stream

_SET_STEPS = 200


def sorted_cosines(features: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosines of all pairs of views of each example, ascending: `[n, views (views - 1) / 2]`.

    Args:
        features: `[n, views, dim]` of any length.

    Raises:
        ValueError: There are fewer than two views.
    """
    if features.ndim != 3 or features.shape[1] < 2:
        raise ValueError(f"features must be [n, at least 2 views, dim], got {list(features.shape)}")
    views = [normalised(features[:, view]) for view in range(features.shape[1])]
    cosines = [(one * other).sum(axis=1) for one, other in combinations(views, 2)]
    return np.sort(np.stack(cosines, axis=1), axis=1)


def mean_cosine(features: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean cosine of all pairs of views of each example, `[n]`: the score of EncoderMI-T.

    Args:
        features: `[n, views, dim]` of any length.
    """
    return np.asarray(sorted_cosines(features).mean(axis=1))


def best_threshold(members: NDArray[Any], non_members: NDArray[Any]) -> float:
    """Return the score from which on to say "member", so that both kinds of a shadow encoder's are told best.

    Args:
        members: `[num_members]` scores of what the shadow encoder was trained on.
        non_members: `[num_non_members]` scores of what it was not.

    Raises:
        ValueError: There is no member or no non-member.
    """
    _check_both(members, non_members)
    thresholds = np.unique(members)
    hits = 1 - np.searchsorted(np.sort(members), thresholds) / len(members)
    false_alarms = 1 - np.searchsorted(np.sort(non_members), thresholds) / len(non_members)
    return float(thresholds[np.argmax(hits - false_alarms)])


class VectorAttack:
    """EncoderMI-V: a small network that is taught on the sorted cosines of a shadow encoder.

    Args:
        members: `[num_members, views, dim]` features by the shadow encoder of what it was trained on.
        non_members: `[num_non_members, views, dim]` of what it was not.
        hidden: Width of the hidden layer.
        seed: Of its training.

    Raises:
        ValueError: There is no member or no non-member.
    """

    def __init__(self, members: NDArray[Any], non_members: NDArray[Any], hidden: int = 32, seed: int = 0) -> None:
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        network = MLPClassifier((hidden,), max_iter=500, random_state=seed, early_stopping=True)
        self._classifier = make_pipeline(StandardScaler(), network).fit(*_shadow(members, non_members))

    def __call__(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probability of membership `[n]` of examples with `features` `[n, views, dim]`."""
        return np.asarray(self._classifier.predict_proba(sorted_cosines(features))[:, 1], dtype=np.float64)


class SetAttack:
    """EncoderMI-S: a small network that is taught on the set of cosines of a shadow encoder (Zaheer et al. 2017).

    "Deep Sets": it averages over the elements of a set, so it also takes another number of views than it was taught on.

    Args:
        members: `[num_members, views, dim]` features by the shadow encoder of what it was trained on.
        non_members: `[num_non_members, views, dim]` of what it was not.
        hidden: Width of the hidden layers.
        seed: Of its training.

    Raises:
        ValueError: There is no member or no non-member.
    """

    def __init__(self, members: NDArray[Any], non_members: NDArray[Any], hidden: int = 32, seed: int = 0) -> None:
        cosines, answers = (torch.from_numpy(array).float() for array in _shadow(members, non_members))
        self._mean, self._std = cosines.mean(), cosines.std().clamp_min(1e-6)
        with torch_stream(seed, "audit", "set attack"):
            self._element, self._whole = nn.Linear(1, hidden), mlp((hidden, hidden, 1), "none")
        parameters = [*self._element.parameters(), *self._whole.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=0.01, weight_decay=1e-3)
        for _ in range(_SET_STEPS):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(self._logits(cosines), answers).backward()
            optimizer.step()

    def __call__(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probability of membership `[n]` of examples with `features` `[n, views, dim]`."""
        with torch.no_grad():
            probabilities = self._logits(torch.from_numpy(sorted_cosines(features)).float()).sigmoid()
        return np.asarray(probabilities.numpy(), dtype=np.float64)

    def _logits(self, cosines: Tensor) -> Tensor:
        elements = self._element(((cosines - self._mean) / self._std).unsqueeze(2)).relu()
        logits: Tensor = self._whole(elements.mean(dim=1)).squeeze(1)
        return logits


def _shadow(members: NDArray[Any], non_members: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the sorted cosines of both, and 1 for each member."""
    _check_both(members, non_members)
    cosines = np.concatenate((sorted_cosines(members), sorted_cosines(non_members)))
    return cosines, np.repeat([1, 0], (len(members), len(non_members)))


def _check_both(members: NDArray[Any], non_members: NDArray[Any]) -> None:
    if not len(members) or not len(non_members):
        raise ValueError(f"members and non_members must not be empty, got {len(members)} and {len(non_members)}")


def embedding_norm(features: NDArray[Any], order: float = 2.0) -> NDArray[np.float64]:
    """Return the mean norm of each example's views, `[n]`.

    Args:
        features: `[n, views, dim]`.
        order: Of the norm; `math.inf` takes the largest entry.
    """
    return np.asarray(np.linalg.norm(np.asarray(features, dtype=np.float64), ord=order, axis=-1).mean(axis=-1))


def negative_loss(model: nn.ModuleDict, objective: Objective, batches: Iterable[Batch]) -> NDArray[np.float64]:
    """Return minus the mean loss of each example over `batches`, `[n]`; modes of `model` are restored.

    Args:
        model: "backbone" and the groups of the objective.
        objective: Its loss of an example depends on no other, such as that of RotNet, MAE or VCOP.
        batches: The same examples, each time with other views or masks.

    Raises:
        ValueError: The objective couples examples, or there is no batch.
    """
    if objective.contract.coupling != "per_example":
        raise ValueError(f"objective must have a loss for each example, got one of a {objective.contract.coupling}")
    with evaluating(model), torch.no_grad():
        losses = [_losses(model, objective, batch) for batch in batches]
    if not losses:
        raise ValueError("batches must have at least 1 batch, got 0")
    return np.asarray(-np.mean(losses, axis=0), dtype=np.float64)


def _losses(model: nn.ModuleDict, objective: Objective, batch: Batch) -> list[float]:
    alone = torch.eye(len(batch.places), dtype=torch.bool, device=batch.places.device)
    return [float(objective.step(model, batch.where(one)).loss) for one in alone]
