"""SemiFL, client side: fix the labels that the model that came is sure of, then learn from them (Diao et al. 2022)."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from clients.local_training import LocalTraining, Outcome, Work
from clients.pseudo_labelling import probabilities, tallied, with_known
from fedssl.checks import within
from fedssl.objectives.objective import UNKNOWN
from fedssl.objectives.pseudo_labels import confident
from fedssl.objectives.semifl import SemiFL
from fedssl.seeding import generator


@dataclass(frozen=True)
class SemiFLTraining(LocalTraining):
    """Local training on the accepted examples, each beside one that is drawn from all of the client's for mixing.

    The model that came labels every example once, in evaluation mode. Those it is sure enough of are accepted, beside
    those whose label the client knows; partners are drawn once a round, as many, with replacement, and are taken for
    what the model says however unsure it is. An epoch passes over the accepted examples. A client without any leaves
    the model as it came and has nothing to contribute; one that knows all of its labels learns from them alone.

    Attributes:
        threshold: Least probability of an accepted label.

    Raises:
        ValueError: An argument is out of range.
    """

    threshold: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, threshold=self.threshold)

    def train(self, work: Work) -> Outcome:
        """Train the model in place where there is anything to learn from.

        Raises:
            ValueError: The objective is another.
        """
        objective, examples, task = work.objective, work.examples, work.task
        if not isinstance(objective, SemiFL):
            raise ValueError(f"client=semifl needs objective=semifl, got {type(objective).__name__}")
        if examples.labelled.all():
            return super().train(work)
        said = probabilities(work, self.batch_size)
        targets = with_known(examples, confident(said, self.threshold))
        metrics = tallied(examples, targets)
        accepted = np.flatnonzero(targets.weights.numpy())
        if not len(accepted):
            return Outcome(metrics, num_examples=0)
        rng = generator(task.seed, "mix", work.partition, task.round)
        places = np.concatenate((accepted, rng.integers(len(targets.labels), size=len(accepted))))
        classes = targets.labels[torch.from_numpy(places)]
        labels = np.where(np.arange(len(places)) < len(accepted), classes.numpy(), UNKNOWN)
        chosen = replace(examples, indices=examples.indices[places], labels=labels, truth=None)
        outcome = super().train(replace(work, objective=objective.with_partners(classes), examples=chosen))
        return replace(outcome, metrics={**outcome.metrics, **metrics}, num_examples=len(accepted))
