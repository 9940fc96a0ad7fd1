"""Noise in every step of a client: DP-SGD (Abadi et al. 2016) over single examples, or over fixed cells of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import nn

from fedssl.checks import at_least, one_of
from fedssl.errors import PrivacyError
from fedssl.objectives.nt_xent import TwoViews
from fedssl.objectives.objective import Batch, Objective
from fedssl.privacy.accounting import Adjacency
from fedssl.privacy.gradients import EngineName, engine
from fedssl.privacy.mechanism import InClient, Setting, refuse_scores, refuse_shared_statistics
from fedssl.privacy.norms import coupling_layers, single_element_norms

_OF_NOISED = frozenset({"teacher", "head", "progress", "steps"})
"""Groups that stay in the client and yet are made of noised parameters, or of the number of a step, alone."""


@dataclass(frozen=True, kw_only=True)
class Sampled(InClient):
    """What adds noise to the sum of the sampled units' gradients, step by step, in the client.

    Attributes:
        sampling_rate: Probability with which each unit is in a step, by itself.
        adjacency: What a neighbouring data set is.

    Raises:
        ValueError: An argument is out of range.
    """

    sampling_rate: float = 0.1
    adjacency: Adjacency = "add_remove"

    adversary = "the server, the other clients and whoever gets the model"
    released = "every update of the client"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(get_args(Adjacency), adjacency=self.adjacency)
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be above 0 and at most 1, got {self.sampling_rate}")

    @property
    def neighbours(self) -> Adjacency:
        """The adjacency that was asked for."""
        return self.adjacency

    @property
    def takes_planted(self) -> bool:
        """Every step noises a sum of units."""
        return True

    def num_steps(self, epochs: int) -> int:
        """Return the steps of a client in a round: as many as see every unit `epochs` times on average."""
        return max(1, round(epochs / self.sampling_rate))

    def rate_and_count(self, setting: Setting) -> tuple[float, int]:
        """Return the rate and the steps of a round; who is in a round is no secret, so cohorts amplify nothing."""
        return self.sampling_rate, self.num_steps(setting.epochs)

    def num_units(self, setting: Setting) -> int:
        """Return the examples of the federation."""
        return setting.num_examples

    def check(self, setting: Setting) -> None:
        """Raise PrivacyError for what both levels refuse."""
        refuse_scores(setting, self.metrics)
        if not vars(type(setting.procedure)).get("noised_steps", False):
            what = f"client={type(setting.procedure).__name__}: its steps use the data beside the noised gradient"
            raise PrivacyError(f"{what}; use local_training or fedprox, or privacy=client", "PRIV-STATE")
        if setting.objective.contract.numbered and self.adjacency == "add_remove":
            what = f"{type(setting.objective).__name__} numbers examples: without one the later ones have other numbers"
            raise PrivacyError(f"privacy.adjacency=add_remove: {what}; use zero_out or replace_one", "PRIV-E-COUPLED")
        if (precision := getattr(setting.procedure, "precision", "float32")) != "float32":
            what = f"client.precision={precision}: gradients are clipped and noised in float32"
            raise PrivacyError(f"{what}; use float32, or privacy=client", "PRIV-PRECISION")


@dataclass(frozen=True, kw_only=True)
class Example(Sampled):
    """Every step adds noise to the sum of single examples' clipped gradients; all views of an example are one unit.

    Attributes:
        engine: How these gradients are found: "ghost", "functional" or "hooks", see `fedssl.privacy.gradients.engine`.
        multiplicity: How often the views of an example are drawn in a step; the mean of these losses is the example's.

    Raises:
        ValueError: An argument is out of range.
    """

    name: ClassVar[str] = "example"
    unit: ClassVar[str] = "example"

    engine: EngineName = "ghost"
    multiplicity: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(get_args(EngineName), engine=self.engine)
        at_least(1, multiplicity=self.multiplicity)

    def check(self, setting: Setting) -> None:
        """Raise PrivacyError unless an example's gradient depends on that example alone."""
        super().check(setting)
        refuse_coupled(setting)
        refuse_mixing(setting, self.name)

    def try_out(self, model: nn.ModuleDict, batch_of: Callable[[int], Batch], objective: Objective) -> None:
        """Raise PrivacyError when the engine cannot tell the examples of this model and objective apart."""
        with refusing(self.engine):
            engine(self.engine)(model, objective, batch_of(2), self.clip)


@contextmanager
def refusing(name: EngineName) -> Iterator[None]:
    """Raise PrivacyError where an engine cannot take the gradients of a first batch."""
    try:
        yield
    except ValueError as error:
        raise PrivacyError(f"privacy.engine={name}: {error}", "PRIV-E-COUPLED") from error
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        what = "a layer changes its input in place, which hooks cannot follow; use functional, or a layer that does not"
        raise PrivacyError(f"privacy.engine={name}: {what}", "PRIV-INPLACE") from error


def refuse_coupled(setting: Setting) -> None:
    """Raise PrivacyError when the gradient of one example depends on others."""
    objective = setting.objective
    name, coupling = type(objective).__name__, objective.contract.coupling
    if coupling == "per_example" and objective.unlabelled_ratio is None:
        return
    if coupling == "per_example":
        coupling, reason = "batch", "its batches are mixed by who is labelled, and its loss by how many are"
    else:
        reason = "without one example the gradients of others change too, by more than the clip bounds"
    cells = "" if kept_values(objective) else "privacy=cell; "
    pairs = "privacy=logit; " if isinstance(objective, TwoViews) else ""
    single = "a loss of single examples: rotnet, mae, diet, supervised, byol, vcop, speed"
    raise PrivacyError(
        f"privacy=example: must have an objective of single examples, {name}'s coupling is {coupling}: {reason}; "
        f"use privacy=client; {cells}{pairs}or {single}",
        "PRIV-E-COUPLED",
    )


def refuse_mixing(setting: Setting, name: str) -> None:
    """Raise PrivacyError when a view, or what the network makes of it, depends on other examples.

    Args:
        setting: The run.
        name: Of the mechanism.
    """
    if getattr(setting.augmentation, "style", None) is not None:
        what = "a view takes its style from another example; set augmentation.style=null"
        raise PrivacyError(f"augmentation.style: must be null with privacy={name}, {what}", "PRIV-E-COUPLED")
    for layer in coupling_layers(setting.model):
        what = f"{layer} normalises with the other examples of a batch; set model.norm=group and, where the"
        raise PrivacyError(f"privacy={name}: {what} objective has heads, objective.norm=group", "PRIV-BN")
    for layer in single_element_norms(setting.model):
        raise PrivacyError(f"privacy={name}: {layer} has groups of one channel, which erase it", "PRIV-BN")


def kept_values(objective: Objective) -> str:
    """Return what an objective keeps of earlier batches, which nothing noises; "" where it keeps none."""
    contract = objective.contract
    unnoised = sorted(contract.private_groups - _OF_NOISED)
    return ", ".join(unnoised) or (contract.coupling if contract.coupling in ("queue", "global_state") else "")


@dataclass(frozen=True, kw_only=True)
class Cell(Sampled):
    """The unit is a fixed cell of a client's examples: the loss, its negatives and its batch statistics stay inside.

    Any loss of a batch is allowed, with batch normalisation in the heads. An example is one that changes its cell.

    Attributes:
        cell_size: Most examples of a cell.

    Raises:
        ValueError: An argument is out of range.
    """

    name: ClassVar[str] = "cell"
    unit: ClassVar[str] = "cell"

    cell_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, cell_size=self.cell_size)

    def check(self, setting: Setting) -> None:
        """Raise PrivacyError when the loss of a cell depends on other cells."""
        super().check(setting)
        refuse_shared_statistics(setting)
        if setting.batch_norm == "local" and "teacher" in setting.model:
            what = "must not be local where a teacher uses statistics that nobody noised; set model.norm=group"
            raise PrivacyError(f"batch_norm=local: {what}", "PRIV-BN")
        if kept := kept_values(setting.objective):
            what = f"{type(setting.objective).__name__} keeps values of earlier cells ({kept}); use privacy=client"
            raise PrivacyError(f"privacy=cell: must have an objective of single batches, {what}", "PRIV-E-COUPLED")
        if self.cell_size < setting.objective.min_batch:
            least = setting.objective.min_batch
            what = f"must be at least {least}, the objective's smallest batch"
            raise PrivacyError(f"privacy.cell_size={self.cell_size}: {what}", "PRIV-E-COUPLED")
