"""SemiReward: keep the pseudo-labels of another rule that a learned reward finds good (Li 2024).

"SemiReward: A General Reward Model for Semi-supervised Learning".
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedssl.checks import above, at_least, within
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Population
from fedssl.objectives.pseudo_labels import Rule, Seen, Targets
from fedssl.objectives.rewarder import Rewarder, Trained, make_generator


class Rewards(nn.Module):
    """What a client keeps: a rewarder, what tries it, the mean of rewarders that scores, the state of another rule.

    Args:
        feature_dim: Width of a feature.
        num_classes: Classes.
        host: What the other rule keeps.
    """

    done: Tensor  # share of the run
    steps: Tensor  # of this client
    late: Tensor  # bool, whether this is the first round of a client that came after the first part
    taught: Tensor  # updates from labelled examples

    def __init__(self, feature_dim: int, num_classes: int, host: nn.Module | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.rewarder = Trained(Rewarder(feature_dim, num_classes))
        self.generator = Trained(make_generator(feature_dim, num_classes))
        self.scorer = copy.deepcopy(self.rewarder.network)
        self.host = host
        self.register_buffer("done", torch.zeros((), dtype=torch.float64))
        self.register_buffer("late", torch.zeros((), dtype=torch.bool))
        for name in ("steps", "taught"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def good(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return which labels `[n]` int64 the mean of rewarders finds good for features, see `not_below_mean`."""
        return not_below_mean(self.scorer(features, F.one_hot(labels, self.num_classes).to(features.dtype)))

    def learn(self, features: Tensor, labels: Tensor, learning_rate: float, momentum: float) -> None:
        """Teach the rewarder what labels that the generator draws are worth, and the generator to earn rewards.

        Args:
            features: `[n, feature_dim]`.
            labels: `[n]` int64, what is right.
            learning_rate: Of both.
            momentum: Of the mean of rewarders.
        """
        right = F.one_hot(labels, self.num_classes).to(features.dtype)
        answers, draws = self.rewarder.leaves(), self.generator.leaves()
        with torch.enable_grad():
            logits = functional_call(self.generator.network, draws, (features,))
            drawn = F.gumbel_softmax(logits, hard=True)  # one-hot, with the gradient of a soft sample
            rewards = functional_call(self.rewarder.network, answers, (features, drawn.detach()))
            error = F.mse_loss(rewards, worth(drawn.detach(), right))
            failure = (1 - self.rewarder.network(features, drawn)).square().mean()
            to_rewarder = torch.autograd.grad(error, list(answers.values()))
            to_generator = torch.autograd.grad(failure, list(draws.values()))
        self.rewarder.step(to_rewarder, learning_rate)
        self.generator.step(to_generator, learning_rate)
        with torch.no_grad():
            for mean, parameter in zip(self.scorer.parameters(), self.rewarder.network.parameters(), strict=True):
                mean.mul_(momentum).add_(parameter, alpha=1 - momentum)


class SemiReward(Rule):
    """Another rule, and of its labels those whose reward is not below the mean of the batch.

    In a first part of the run rewards are learned from labelled examples, and the other rule decides alone. After it,
    every so many steps, they are learned from the unlabelled examples of the batch whose labels were accepted. The
    first part of a client that joins later is its first round; for one without labels it never ends.

    Args:
        rule: Gives labels and weights.
        start: Share of the run that is its first part.
        every: Steps between two updates after that.
        learning_rate: Of the rewarder, and of the generator that draws labels for it.
        momentum: Of the exponential mean of rewarders that scores.

    Raises:
        ValueError: If an argument is out of range.
    """

    coupling = "batch"  # a reward is compared with the mean of its batch

    def __init__(
        self, rule: Rule, start: float = 0.1, every: int = 10, learning_rate: float = 5e-4, momentum: float = 0.999
    ) -> None:
        within(0, 1, start=start, momentum=momentum)
        at_least(1, every=every)
        above(0, learning_rate=learning_rate)
        self.rule = rule
        self.start = start
        self.every = every
        self.learning_rate = learning_rate
        self.momentum = momentum

    def build(self, encoder: Encoder, population: Population) -> nn.Module:
        """Return the rewarder and what belongs to it, with the state of the other rule."""
        return Rewards(encoder.feature_dim, population.num_classes, self.rule.build(encoder, population))

    def learn(self, state: nn.Module | None, labelled: Seen, labels: Tensor) -> None:
        """Learn rewards from labelled examples, in the first part."""
        rewards = cast(Rewards, state)
        self.rule.learn(rewards.host, labelled, labels)
        if self._begins(rewards):
            rewards.learn(labelled.features, labels, self.learning_rate, self.momentum)
            rewards.taught += 1

    def targets(self, state: nn.Module | None, unlabelled: Seen) -> Targets:
        """Return the other rule's targets; after the first part, those with a reward below the mean have weight 0."""
        rewards = cast(Rewards, state)
        targets = self.rule.targets(rewards.host, unlabelled)
        if self._begins(rewards) or not rewards.taught:
            return targets
        targets = Targets(targets.labels, targets.weights * rewards.good(unlabelled.features, targets.labels))
        accepted = targets.weights > 0
        if rewards.steps % self.every == 0 and accepted.any():
            features, labels = unlabelled.features[accepted], targets.labels[accepted]
            rewards.learn(features, labels, self.learning_rate, self.momentum)
        return targets

    def regularise(self, state: nn.Module | None, strong_logits: Tensor, targets: Targets) -> Tensor:
        """Return what the other rule adds for the targets that are left."""
        return self.rule.regularise(cast(Rewards, state).host, strong_logits, targets)

    def begin_round(self, state: nn.Module | None, *, first: bool) -> None:
        """Prepare the other rule, and end the first part of a client that joined late."""
        rewards = cast(Rewards, state)
        rewards.late.fill_(False)
        self.rule.begin_round(rewards.host, first=first)

    def after_step(self, state: nn.Module | None, progress: float) -> None:
        """Count the step, and remember how far the run is."""
        rewards = cast(Rewards, state)
        if not rewards.steps:
            rewards.late.fill_(progress >= self.start)
        rewards.done.fill_(progress)
        rewards.steps += 1
        self.rule.after_step(rewards.host, progress)

    def _begins(self, rewards: Rewards) -> bool:
        """Return whether this is the first part."""
        return bool(rewards.late) or float(rewards.done) < self.start


def worth(labels: Tensor, right: Tensor) -> Tensor:
    """Return what labels are worth, `[n]`: 1 of a right one, 1/2 of a wrong one, which is `(1 + cosine) / 2`.

    Args:
        labels: `[n, num_classes]` one-hot.
        right: `[n, num_classes]` one-hot.
    """
    return (1 + (labels * right).sum(dim=1)) / 2


def not_below_mean(rewards: Tensor) -> Tensor:
    """Return which rewards `[n]` are at least their mean, `[n]` bool, n at least 1."""
    least = rewards.min()  # the mean of equal numbers, as it is rounded, may be above them
    return rewards >= least + (rewards - least).mean()
