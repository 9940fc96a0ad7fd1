"""The risk of a probe, taken apart (Dubois 2023, "Evaluating Self-Supervised Learning via Risk Decomposition")."""

import torch
from torch import Tensor

from fedssl.data.split import by_label
from fedssl.evaluation.linear_probe import LinearMap, LinearProbe
from fedssl.seeding import generator

TERMS = ("risk-approximation", "risk-usability", "risk-probe", "risk-encoder", "risk-total")
_LEAST_SHARE, _MOST_SHARE = 0.1, 0.5  # of the training features that are held out


def decompose(approximation: float, train_on_train: float, held_out: float, test: float) -> dict[str, float]:
    """Return the four terms and their sum, by the names of `TERMS`.

    Args:
        approximation: Training error of a supervised network of the encoder's family.
        train_on_train: Error of a probe on the features it was trained on, which the encoder was trained on too.
        held_out: Error on training features of a probe that did not see them; the encoder did.
        test: Error on features that neither saw.
    """
    terms = (approximation, train_on_train - approximation, held_out - train_on_train, test - held_out, test)
    return dict(zip(TERMS, terms, strict=True))


def risk(
    probe: LinearProbe,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    approximation: float,
    seed: int,
) -> dict[str, float]:
    """Return the decomposition of the error of `probe`; the term of the encoder may be negative.

    Each of the three errors has a strength of its own: on its own training features the probe that fits them best,
    otherwise the one that does best on held-out ones.

    Args:
        probe: How probes are trained.
        train: Features `[n, d]` and labels `[n]` of examples that the encoder was trained on.
        test: Those of examples it was not trained on.
        num_classes: Number of classes.
        approximation: Training error of a supervised network of the encoder's family; 0 leaves it in the usability.
        seed: Root of what is random.
    """
    features, labels = train
    maps = probe.path(features, labels, num_classes, seed, probe.strengths)
    best = maps[probe.choose(features, labels, num_classes, seed)]
    share = min(max(len(test[1]) / len(labels), _LEAST_SHARE), _MOST_SHARE)
    parts = by_label(labels.cpu().numpy(), share, generator(seed, "evaluation", "risk"))
    rest, held = (torch.from_numpy(part).to(labels.device) for part in parts)
    apart = probe.fit(features[rest], labels[rest], num_classes, seed)
    train_on_train = min(_error(each, features, labels) for each in maps)
    held_out = _error(apart, features[held], labels[held])
    return decompose(approximation, train_on_train, held_out, _error(best, *test))


def _error(classifier: LinearMap, features: Tensor, labels: Tensor) -> float:
    return 1.0 - classifier.accuracy(features, labels)
