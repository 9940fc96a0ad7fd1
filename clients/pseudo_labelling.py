"""Label a client's whole shard once, with the model that came, for methods that keep these labels for a round."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.local_training import Work
from fedssl.objectives.objective import UNKNOWN, PseudoLabels
from fedssl.objectives.pseudo_labels import Targets
from fedssl.objectives.supervised import classify
from fedssl.training.diagnostics import PseudoLabelTally
from fedssl.training.loop import Examples, make_batch


def known_labels(examples: Examples) -> NDArray[np.int64]:
    """Return the labels `[n]`, `UNKNOWN` where the client knows none."""
    return np.full(len(examples.indices), UNKNOWN) if examples.labels is None else examples.labels


@torch.no_grad()
def probabilities(work: Work, batch_size: int) -> Tensor:
    """Return what the classifier of the model says of each example itself, `[n, num_classes]` on the CPU.

    The model is left in evaluation mode, with which running statistics stay as they came.

    Args:
        work: With the model that came; the objective says which frames of an example are seen.
        batch_size: Examples that are seen at a time.
    """
    model, examples = work.model, work.examples
    look = copy.copy(work.objective)
    look.views = ("clean",)
    model.eval()
    device = next(model.parameters()).device
    places = np.arange(len(examples.indices))
    answers = []
    for start in range(0, len(places), batch_size):
        batch = make_batch(look, examples, places[start : start + batch_size], work.stream, 0, device)
        answers.append(classify(model, batch.views[0]).softmax(dim=1).cpu())
    return torch.cat(answers)


def tallied(examples: Examples, targets: Targets) -> dict[str, float]:
    """Return how much of the unlabelled examples is accepted and how often that is right, see `PseudoLabelTally`.

    Args:
        examples: All of the client's.
        targets: What each of them is taken for; those with labels are left out.
    """
    unknown = torch.from_numpy(np.flatnonzero(~examples.labelled))
    tally = PseudoLabelTally(examples.truth)
    tally.add(PseudoLabels(unknown, targets.labels[unknown], targets.weights[unknown] > 0))
    return tally.shares()


def with_known(examples: Examples, targets: Targets) -> Targets:
    """Return the targets with the labels that the client knows in their places, each of which counts in full."""
    known = torch.from_numpy(examples.labelled)
    labels = torch.where(known, torch.from_numpy(known_labels(examples)), targets.labels)
    return Targets(labels, torch.where(known, 1.0, targets.weights))
