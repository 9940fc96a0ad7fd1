"""CBAFed, client side: pseudo-labels by thresholds that balance the classes, fixed for a round (Li et al. 2023).

"Class Balanced Adaptive Pseudo Labeling for Federated Semi-Supervised Learning".
"""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.local_training import LocalTraining, Outcome, Work
from clients.pseudo_labelling import probabilities, tallied, with_known
from fedssl.arrays import Arrays
from fedssl.checks import at_least, within
from fedssl.objectives.objective import CLASSIFIER
from fedssl.objectives.pseudo_labels import Targets, confident
from fedssl.objectives.supervised import Supervised

CLASSES = "classes"


def thresholds(shares: Tensor, base: float, highest: float) -> Tensor:
    """Return the probability `[C]` that a pseudo-label of each class needs: less where a class is rare.

    It is `base + p - std(p)`, at most `highest`, where p are the shares scaled as if there were ten classes.

    Args:
        shares: `[C]` of the classes among the labels and accepted pseudo-labels of the federation; they sum to 1.
        base: What a class needs whose scaled share is the standard deviation of all.
        highest: What any class needs at most.
    """
    scaled = _scaled(shares)
    return (scaled + base - scaled.std()).clamp(max=highest)


def balanced_targets(said: Tensor, shares: Tensor, base: float, highest: float, rare: float) -> Targets:
    """Return what examples are taken for, and which of them are accepted.

    One that reaches the threshold of its likeliest class joins that; of the others, one whose second likeliest class
    is rare joins this second class.

    Args:
        said: `[n, C]` probabilities.
        shares: `[C]`, see `thresholds`.
        base: See `thresholds`.
        highest: See `thresholds`.
        rare: Classes with a smaller scaled share are rare.
    """
    likeliest = said.argmax(dim=1)
    first = confident(said, thresholds(shares, base, highest)[likeliest])
    second = said.scatter(1, likeliest[:, None], -1.0).argmax(dim=1)
    joins = (first.weights == 0) & (_scaled(shares) < rare)[second]
    return Targets(torch.where(joins, second, likeliest), torch.where(joins, 1.0, first.weights))


def _scaled(shares: Tensor) -> Tensor:
    return shares * (len(shares) / 10)


@dataclass(frozen=True)
class CBAFedTraining(LocalTraining):
    """Local training on labels that are known and on pseudo-labels that are fixed when the round begins.

    For objective=supervised with labelled_only=false, and strategy=cbafed. A client that accepts nothing leaves the
    model as it came and has nothing to contribute. One that knows all of its labels trains for `labelled_epochs`; its
    first epoch leaves a record, and every `residual_every` epochs later the model becomes `residual` times the record
    plus the rest of itself, and the new record.

    What leaves a client beside the model is how many of its examples are of each class, as far as it can tell.

    Attributes:
        base: Of the thresholds.
        highest: Of the thresholds, at most.
        rare: Scaled share under which a class takes what is unsure and has it second.
        labelled_epochs: Epochs of a client that knows all of its labels.
        residual: Share of the record; 0 leaves it out.
        residual_every: Epochs between records.

    Raises:
        ValueError: An argument is out of range.
    """

    base: float = 0.84
    highest: float = 0.95
    rare: float = 0.03
    labelled_epochs: int = 11
    residual: float = 0.8
    residual_every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, base=self.base, highest=self.highest, residual=self.residual)
        at_least(0, rare=self.rare)
        at_least(1, labelled_epochs=self.labelled_epochs, residual_every=self.residual_every)

    def train(self, work: Work) -> Outcome:
        """Train the model in place where there is anything to learn from, and send the counts of the classes.

        Raises:
            ValueError: The objective is another, or the server sent no shares of the classes.
        """
        objective, examples, task = work.objective, work.examples, work.task
        if not isinstance(objective, Supervised) or objective.needs_labels:
            raise ValueError("client=cbafed needs objective=supervised objective.labelled_only=false")
        if CLASSES not in task.extras:
            raise ValueError("client=cbafed needs strategy=cbafed: the server sent no shares of the classes")
        num_classes = cast(nn.Linear, work.model[CLASSIFIER]).out_features
        if examples.labels is not None and examples.labelled.all():
            longer = replace(self, epochs=self.labelled_epochs)
            num_steps = -(-len(examples.indices) // self.batch_size)
            residual = _Residual(objective, num_steps, self.residual, self.residual_every)
            outcome = LocalTraining.train(longer, replace(work, objective=residual))
            return replace(outcome, sent=_sent(examples.labels, num_classes))
        said = probabilities(work, self.batch_size)
        came = torch.tensor(task.extras[CLASSES]["shares"])
        targets = with_known(examples, balanced_targets(said, came, self.base, self.highest, self.rare))
        metrics = tallied(examples, targets)
        accepted = np.flatnonzero(targets.weights.numpy())
        labels = targets.labels.numpy()[accepted]
        sent = _sent(labels, num_classes)
        if not len(accepted):
            return Outcome(metrics, sent, num_examples=0)
        chosen = replace(examples, indices=examples.indices[accepted], labels=labels, truth=None)
        outcome = super().train(replace(work, examples=chosen))
        # how often pseudo-labels are repeated is no accuracy
        trained = {name: value for name, value in outcome.metrics.items() if name != "accuracy"}
        return replace(outcome, metrics={**trained, **metrics}, sent=sent, num_examples=len(accepted))


class _Residual(Supervised):
    """The supervised objective, whose model is drawn back to a record of itself as epochs end."""

    def __init__(self, objective: Supervised, steps_an_epoch: int, share: float, every: int) -> None:
        super().__init__(objective.views[0], objective.smoothing, labelled_only=False)
        self._steps_an_epoch, self._share, self._every = steps_an_epoch, share, every
        self._steps = 0
        self._record: dict[str, Tensor] = {}

    @torch.no_grad()
    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Count the step, and where it ends an epoch keep the record or return to it; whole numbers stay."""
        self._steps += 1
        epochs, rest = divmod(self._steps, self._steps_an_epoch)
        if rest or (epochs - 1) % self._every:
            return
        state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        for name, tensor in state.items():
            if self._record:
                tensor.lerp_(self._record[name], self._share)
        self._record = {name: tensor.clone() for name, tensor in state.items()}


def _sent(labels: NDArray[np.int64], num_classes: int) -> dict[str, Arrays]:
    return {CLASSES: {"counts": np.bincount(labels, minlength=num_classes)}}
