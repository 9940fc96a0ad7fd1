"""What every privacy mechanism says of itself: its unit, its noise, what a round releases, and what it refuses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import nn

from fedssl.arrays import Arrays
from fedssl.checks import above, at_least, one_of
from fedssl.errors import PrivacyError
from fedssl.objectives.objective import Batch, Objective
from fedssl.privacy.accounting import Accountant, Adjacency, Release, calibrate, sensitivity
from fedssl.privacy.clipping import change, clipped, noised_names
from fedssl.privacy.ledger import SERVER, Charge, client_scope
from fedssl.privacy.noise import NoiseKey


@dataclass(frozen=True, slots=True)
class Setting:
    """The run that a mechanism is asked to protect.

    Attributes:
        objective: The local loss.
        model: The bundle; its values mean nothing.
        batch_norm: Of the configuration: "share", "local" or "frozen".
        augmentation: Makes the views.
        procedure: The client procedure.
        rounds: Of the run.
        epochs: Of a client in a round.
        num_clients: Of the federation.
        num_examples: Of the whole federation; 0 on a server of devices.
        cohort: Clients of a round; None is everyone.
        fixed_cohort: Why clients cannot be drawn by coins alone ("availability", ...); None where they can.
        shows_clients: Whether clients evaluate and tell their scores.
        server_trains: Whether the server trains on labelled examples of its own.
        chooses: Which key chooses rounds by a score, "early_stop.score" or "checkpoint.best"; None where none does.
        evaluates: Whether scores of the encoder are written down.
        begins_trained: Whether training begins with an encoder from elsewhere.
        overlapping: Whether several clients may hold the same example.
    """

    objective: Objective
    model: nn.ModuleDict
    batch_norm: str
    augmentation: object
    procedure: object
    rounds: int
    epochs: int
    num_clients: int
    num_examples: int
    cohort: int | None
    fixed_cohort: str | None
    shows_clients: bool
    server_trains: bool = False
    chooses: str | None = None
    evaluates: bool = False
    begins_trained: bool = False
    overlapping: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """What a mechanism comes to in a run.

    Attributes:
        noise_multiplier: Noise over the sensitivity of the sum.
        delta: Probability with which a bound may fail.
        release: What one round releases of one scope.
    """

    noise_multiplier: float
    delta: float
    release: Release


@dataclass(frozen=True, kw_only=True)
class Mechanism(ABC):
    """Clipping and Gaussian noise for one kind of unit.

    Attributes:
        noise_multiplier: Noise over the sensitivity; 0 clips alone and promises nothing. This or `target_epsilon`.
        target_epsilon: The noise is made so that the whole run comes to this.
        clip: Largest L2 norm of what a unit contributes.
        delta: Probability with which the bound may fail; None is a tenth of one over the number of units.
        group_size: Units that may be of one person; above 1 a further statement covers so many of them together.
        max_epsilon: The run ends before the round that would exceed this; None never does.
        accountant: Where the reported bound comes from, see `fedssl.privacy.accounting.epsilon`.
        metrics: "protected" releases no number beside the model; "unprotected" shows them to whoever simulates.
        noise: "reproducible" draws from the run's seed and is void against whoever knows it, "secure" from a fresh key.

    Raises:
        ValueError: An argument is out of range, or not exactly one of `noise_multiplier` and `target_epsilon` is given.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    at_server: ClassVar[bool] = False
    """Whether the server makes the release."""

    noise_multiplier: float | None = None
    target_epsilon: float | None = None
    clip: float = 1.0
    delta: float | None = None
    group_size: int = 1
    max_epsilon: float | None = None
    accountant: Accountant = "pld"
    metrics: Literal["protected", "unprotected"] = "protected"
    noise: Literal["reproducible", "secure"] = "reproducible"

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            got = f"{self.noise_multiplier} and {self.target_epsilon}"
            raise ValueError(f"noise_multiplier or target_epsilon: give exactly one of them, got {got}")
        at_least(0, noise_multiplier=self.noise_multiplier)
        above(0, target_epsilon=self.target_epsilon, clip=self.clip, max_epsilon=self.max_epsilon)
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"delta must be above 0 and below 1, got {self.delta}")
        at_least(1, group_size=self.group_size)
        if self.group_size > 1 and self.neighbours == "replace_one":
            raise ValueError(f"group_size must be 1 where one unit replaces another, got {self.group_size}")
        one_of(get_args(Accountant), accountant=self.accountant)
        one_of(("protected", "unprotected"), metrics=self.metrics)
        one_of(("reproducible", "secure"), noise=self.noise)

    @property
    def in_client(self) -> bool:
        """Whether clients add noise."""
        return not self.at_server

    @property
    def takes_planted(self) -> bool:
        """Whether canaries can be planted among the units whose sum is noised."""
        return False

    @property
    def budget(self) -> float | None:
        """The epsilon that nobody may exceed: `max_epsilon`, or else what the noise is made for; None has no limit."""
        return self.target_epsilon if self.max_epsilon is None else self.max_epsilon

    @property
    @abstractmethod
    def neighbours(self) -> Adjacency:
        """What a neighbouring data set is."""

    @property
    @abstractmethod
    def adversary(self) -> str:
        """Who learns nothing more."""

    @property
    @abstractmethod
    def released(self) -> str:
        """What the adversary sees."""

    @abstractmethod
    def check(self, setting: Setting) -> None:
        """Raise PrivacyError when the guarantee would not hold for a run."""

    def try_out(self, model: nn.ModuleDict, batch_of: Callable[[int], Batch], objective: Objective) -> None:  # noqa: B027
        """Raise PrivacyError when a first step would fail; `batch_of` makes a batch of the examples of some client."""

    @abstractmethod
    def rate_and_count(self, setting: Setting) -> tuple[float, int]:
        """Return the sampling rate that is accounted for, and the releases of one scope in a round."""

    @abstractmethod
    def num_units(self, setting: Setting) -> int:
        """Return how many units the run has; 0 where nobody can say."""

    @abstractmethod
    def assumptions(self) -> tuple[str, ...]:
        """Return what must be true for the guarantee to hold."""

    def num_rounds(self, setting: Setting) -> int:
        """Return the most rounds of a run that one scope is in."""
        return setting.rounds

    def largest_move(self, setting: Setting) -> float:
        """Return how far one unit moves the noised sum at most, in L2 norm."""
        return self.clip

    def terms(self, setting: Setting) -> Terms:
        """Return the noise and the delta of a run.

        Raises:
            PrivacyError: Delta has to be given, or is not below one over the number of units.
        """
        units = self.num_units(setting)
        if self.delta is None and not units:
            raise PrivacyError("privacy.delta=null: must be given, this process does not know the data", "PRIV-DELTA")
        delta = self.delta if self.delta is not None else 1 / (10 * units)
        if units and delta >= 1 / units:
            allowed = f"must be below {1 / units:.3g}, one over the number of units"
            raise PrivacyError(f"privacy.delta={delta}: {allowed}", "PRIV-DELTA")
        rate, count = self.rate_and_count(setting)
        multiplier = self.noise_multiplier
        if multiplier is None:
            multiplier = calibrate(
                float(self.target_epsilon or 0),
                delta,
                sampling_rate=rate,
                count=count * self.num_rounds(setting),
                accountant=self.accountant,
                adjacency=self.neighbours,
            )
        move = self.largest_move(setting)
        noise = multiplier * sensitivity(move, self.neighbours)
        return Terms(multiplier, delta, Release(noise, move, rate, count))

    def charges(self, terms: Terms, round_number: int, cohort: Sequence[int], key: str) -> list[Charge]:
        """Return what a round is charged with: each client of the cohort, or the server."""
        scopes = [SERVER] if self.at_server else [client_scope(partition) for partition in sorted(cohort)]
        return [self.charge(terms, round_number, scope, key) for scope in scopes]

    def charge(self, terms: Terms, round_number: int, scope: str, key: str) -> Charge:
        """Return what one scope is charged for one round."""
        return Charge(scope, round_number, self.name, self.unit, self.neighbours, terms.release, key)

    def sent(
        self,
        received: Arrays,
        trained: Arrays,
        buffers: frozenset[str],
        terms: Terms,
        key: NoiseKey,
        path: Sequence[int],
    ) -> Arrays:
        """Return what a client sends: by default what it trained, with every buffer as it came.

        Args:
            received: What the client was sent.
            trained: The same tensors after training.
            buffers: Names that no optimizer trains: statistics of the client's data.
            terms: Of the run.
            key: What noise is drawn from.
            path: Partition and round.
        """
        return {name: received[name] if name in buffers else array for name, array in trained.items()}


@dataclass(frozen=True, kw_only=True)
class InClient(Mechanism):
    """What clients noise by themselves, each charged for the rounds that it is in.

    Attributes:
        max_rounds_per_client: Most rounds that a client is in, for which the noise of a target is made; it is not
            drawn any more after them. None: all of them.

    Raises:
        ValueError: An argument is out of range.
    """

    max_rounds_per_client: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, max_rounds_per_client=self.max_rounds_per_client)

    def num_rounds(self, setting: Setting) -> int:
        """Return the rounds of the run, or the most of a client."""
        return min(setting.rounds, self.max_rounds_per_client or setting.rounds)

    def assumptions(self) -> tuple[str, ...]:
        """Return what must be true for the guarantee to hold: counts and the cohort travel as they are."""
        return (
            "how many examples a client holds, of how many it knows the label, and in which rounds it takes part, is "
            "public",
        )


def noised(
    received: Arrays,
    trained: Arrays,
    buffers: frozenset[str],
    clip: float,
    std: float,
    key: NoiseKey,
    path: Sequence[int | str],
) -> Arrays:
    """Return what a client received, plus its clipped change, plus noise; every buffer is as it came.

    Args:
        received: What the client was sent.
        trained: The same tensors after training.
        buffers: Names that no optimizer trains.
        clip: Largest L2 norm of the change.
        std: Standard deviation of the noise.
        key: What the noise is drawn from.
        path: Names the noise.
    """
    moved = clipped(change(trained, received, noised_names(trained, buffers)), clip)
    arrays = dict(received)
    for name, values in moved.items():
        noise = key.normal(std, values.shape, *path, name)
        arrays[name] = (received[name] + values + noise).astype(received[name].dtype)
    return arrays


def refuse_shared_statistics(setting: Setting) -> None:
    """Raise PrivacyError when running statistics, which are never released, would be those of an untrained model."""
    from fedssl.privacy.norms import coupling_layers

    layers = coupling_layers(setting.model["backbone"])
    if setting.batch_norm == "share" and layers:
        what = f"backbone.{layers[0]} normalises batches, and its statistics may not be released"
        raise PrivacyError(f"batch_norm=share: {what}; set model.norm=group, or batch_norm=frozen", "PRIV-BN")


def refuse_scores(setting: Setting, metrics: str) -> None:
    """Raise PrivacyError when scores of the clients' data would decide, or clients would tell their own."""
    if setting.chooses is not None and metrics == "protected":
        what = "a score of the clients' data would choose a round; set it to null, or privacy.metrics=unprotected"
        raise PrivacyError(f"{setting.chooses}: {what}", "PRIV-METRIC")
    if setting.shows_clients and metrics == "protected":
        what = "clients tell scores of their data; set client_evaluation=none, or privacy.metrics=unprotected"
        raise PrivacyError(f"client_evaluation: {what}", "PRIV-METRIC")
