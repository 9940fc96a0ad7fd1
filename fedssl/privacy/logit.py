"""Noise in the sum of the clipped gradients of pairs (Kong 2023, "DP-SGD for non-decomposable objective functions").

A contrastive loss sees examples through the similarities of pairs alone. Each pair's gradient is clipped, and how much
the pairs' weights in the loss depend on one example is bounded by the temperature.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import one_of
from fedssl.errors import PrivacyError
from fedssl.models.encoder import Encoder
from fedssl.objectives.nt_xent import TwoViews, nt_xent
from fedssl.objectives.objective import UNKNOWN, Batch, Objective, Population, Step
from fedssl.privacy.contract import PrivacyContract
from fedssl.privacy.example import Sampled, refuse_mixing, refusing
from fedssl.privacy.gradients import Engine, EngineName, Gradients, engine, trainable
from fedssl.privacy.mechanism import Setting

_LEAST_TEMPERATURE = 0.5


def largest_move(clip: float, temperature: float) -> float:
    """Return how far one example moves `pair_gradients` at most, in L2 norm: 2 clip (1 + exp(1 / temperature)).

    An example that leaves takes two rows with it, each with weights of at most 2 in absolute sum, and in the row of
    another view a, of which it had the share q_a, weights move by 2 q_a. Half of each counts, so the sum moves by at
    most clip (2 + sum of q_a). Let v be the mean of the n other views, r its length, t = a . v and T the temperature.
    By Jensen the exponentials of a's similarities to these n, itself included, sum to n exp(t / T) or more; so
    q_a <= 2 exp((1 - t) / T) / n. The mean of t is r^2 and |t| <= r: by convexity the mean of exp(-t / T) is at most
    cosh(r / T) - r sinh(r / T), which is at most 1 where T >= 1/2, because tanh(s / 2) <= s / 2.

    Args:
        clip: Largest L2 norm of a pair's gradient.
        temperature: At least 0.5.
    """
    return 2 * clip * (1 + math.exp(1 / temperature))


def pair_weights(embeddings: Tensor, temperature: float) -> Tensor:
    """Return the derivatives of the loss by the pairs' similarities, `[rows, rows]` above the diagonal.

    The loss is the sum over examples of the mean of their two rows of `nt_xent`; similarities are cosines over the
    temperature.

    Args:
        embeddings: `[rows, dim]`, the first views of all examples and then the second.
        temperature: Of the loss.
    """
    embeddings = F.normalize(embeddings.double(), dim=1)
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    shares = (embeddings @ embeddings.T / temperature).masked_fill(itself, -math.inf).softmax(dim=1)
    rows = shares - itself.roll(len(embeddings) // 2, 0).double()
    return ((rows + rows.T) / 2).triu(1)


def pair_gradients(
    gradients: Engine, model: nn.ModuleDict, objective: TwoViews, batch: Batch, clip: float, at_once: int
) -> Gradients:
    """Return the sum over all pairs of views of their clipped gradients, each times its weight in the loss.

    An example that the network gives no finite embedding counts as absent: with it no weight would be a number.

    Args:
        gradients: The engine, to which a pair is an example.
        model: The bundle.
        objective: Says what is compared.
        batch: All examples of a step.
        clip: Largest L2 norm of a pair's gradient.
        at_once: Pairs that are computed at once.

    Returns:
        The sums, with the norms of all pairs.
    """
    sums = {key: torch.zeros_like(parameter) for key, parameter in trainable(model).items()}
    norms: list[Tensor] = []
    loss = math.nan
    if len(batch.places):
        with torch.no_grad():
            embeddings = torch.cat(objective.embeddings(model, batch))
        finite = embeddings.isfinite().all(dim=1).view(2, -1).all(dim=0)
        batch, embeddings = batch.where(finite), embeddings[finite.repeat(2)]
    if len(batch.places) >= objective.min_batch:
        first, second = embeddings.chunk(2)
        loss = nt_xent(first, second, objective.temperature).item()
        weights = pair_weights(embeddings, objective.temperature)
        views = torch.cat(batch.views)
        numbers = torch.triu_indices(len(views), len(views), 1, device=views.device)
        for one, other in zip(*(places.split(at_once) for places in numbers), strict=True):
            pairs = _as_examples(views[one], views[other])
            part = gradients(model, _Similarity(objective), pairs, clip, weights=weights[one, other])
            norms.append(part.norms)
            for key, values in part.sums.items():
                sums[key] += values
    return Gradients(sums, torch.cat(norms) if norms else torch.zeros(0, dtype=torch.float64), loss, {})


def _as_examples(first: Tensor, second: Tensor) -> Batch:
    """Return pairs of views as the two views of examples."""
    numbers = torch.arange(len(first), device=first.device)
    nothing = torch.zeros(len(first), 0, dtype=torch.float64, device=first.device)
    return Batch((first, second), torch.zeros_like(numbers), numbers, nothing, torch.full_like(numbers, UNKNOWN))


class _Similarity(Objective):
    """The similarity of the two views of an example, which no other example has a part in.

    Args:
        compared: Its embeddings and temperature.
    """

    contract = PrivacyContract("per_example")

    def __init__(self, compared: TwoViews) -> None:
        self.compared = compared

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        return {}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        first, second = (F.normalize(each, dim=1) for each in self.compared.embeddings(model, batch))
        return Step((first * second).sum(dim=1).mean() / self.compared.temperature, {})


@dataclass(frozen=True, kw_only=True)
class Logit(Sampled):
    """Every step adds noise to the weighted sum of the clipped gradients of pairs of a contrastive loss.

    Attributes:
        engine: How these gradients are found, see `fedssl.privacy.gradients.engine`.

    Raises:
        ValueError: An argument is out of range.
    """

    name: ClassVar[str] = "logit"
    unit: ClassVar[str] = "example"

    engine: EngineName = "ghost"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(get_args(EngineName), engine=self.engine)

    def check(self, setting: Setting) -> None:
        """Raise PrivacyError unless examples meet in the similarities of pairs alone, and these are small."""
        super().check(setting)
        temperature = _two_views(setting.objective).temperature
        if temperature < _LEAST_TEMPERATURE:
            allowed = f"must be at least {_LEAST_TEMPERATURE} with privacy=logit, the noise grows"
            what = f"objective.temperature={temperature}: {allowed} as exp(1 / temperature)"
            raise PrivacyError(what, "PRIV-LOGIT-TEMP")
        refuse_mixing(setting, self.name)

    def largest_move(self, setting: Setting) -> float:
        """Return how far one example moves the sum at most."""
        return largest_move(self.clip, _two_views(setting.objective).temperature)

    def gradients(self, model: nn.ModuleDict, objective: Objective, batch: Batch, at_once: int) -> Gradients:
        """Return the sum that is noised, see `pair_gradients`."""
        return pair_gradients(engine(self.engine), model, _two_views(objective), batch, self.clip, at_once)

    def try_out(self, model: nn.ModuleDict, batch_of: Callable[[int], Batch], objective: Objective) -> None:
        """Raise PrivacyError when the engine cannot tell the pairs of this model apart."""
        with refusing(self.engine):
            self.gradients(model, objective, batch_of(2), at_once=6)


def _two_views(objective: Objective) -> TwoViews:
    if isinstance(objective, TwoViews):
        return objective
    what = f"must have simclr or cvrl, whose loss is of the similarities of pairs, got {type(objective).__name__}"
    raise PrivacyError(f"privacy=logit: {what}; use privacy=example, cell or client", "PRIV-E-COUPLED")
