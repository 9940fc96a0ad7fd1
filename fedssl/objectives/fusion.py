"""One pseudo-label from the answers of two networks (SUMMIT, Simons 2023).

"SUMMIT: Source-Free Adaptation of Uni-Modal Models to Multi-Modal Targets".
"""

import torch
from torch import Tensor


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Return whether both networks take an example for the same class, `[n]` bool.

    Args:
        first: `[n, num_classes]` logits of one network, or probabilities.
        second: `[n, num_classes]` those of the other.
    """
    return first.argmax(dim=1) == second.argmax(dim=1)


def entropy_weights(first: Tensor, second: Tensor) -> Tensor:
    """Return how much each network's answer counts, `[2, n]`: the exponential of minus its entropy, by their sum.

    A one-hot answer beside a uniform one of C classes counts C / (C + 1).

    Args:
        first: `[n, num_classes]` logits of one network.
        second: `[n, num_classes]` those of the other.
    """
    answers = torch.stack((first, second)).log_softmax(dim=2)
    return (answers.exp() * answers).sum(dim=2).softmax(dim=0)


def entropy_fusion(first: Tensor, second: Tensor) -> Tensor:
    """Return the logarithm of the mean of both networks' probabilities, weighted by `entropy_weights`.

    Args:
        first: `[n, num_classes]` logits of one network.
        second: `[n, num_classes]` those of the other.

    Returns:
        `[n, num_classes]`, logits of the fused answer.
    """
    # in logarithms throughout: a probability too small for a float is no minus infinity to the rule
    weights = entropy_weights(first, second).log().unsqueeze(2)
    return (weights + torch.stack((first, second)).log_softmax(dim=2)).logsumexp(dim=0)
