"""The typed run configuration: checked once, the same for every runtime."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fedssl.checks import above, at_least, within
from fedssl.errors import ConfigError

IMPORT_ROOTS = ("fedssl.", "strategies.", "clients.", "torch.optim.", "flwr.serverapp.strategy.")
COMPONENTS = (
    "data",
    "partition",
    "labels",
    "model",
    "objective",
    "augmentation",
    "client",
    "strategy",
    "evaluation",
    "client_evaluation",
    "tracking",
    "availability",
    "privacy",
    "protection",
)
MISSING = "???"
Spec = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Engine:
    """Where clients run: on Ray workers or in this process.

    Attributes:
        kind: The grid.
        num_gpus_per_client: Share of a GPU that a client uses; 0 trains on the CPU, "auto" measures one client and
            shares each GPU among as many as fit (Ray only).
        threads_per_client: Cores that a client uses.
        num_workers: Worker processes; None takes as many as the cores carry. Ray only.
        address: A running Ray cluster ("auto"), or None for one of this run. Ray only.
        max_retries: How often a client is run again after its worker died. Ray only.
        client_timeout_seconds: A client that takes longer is ended and counts as failed; None waits. Ray only.
        schedule: Which client of a round is worked on first; the results are the same. Ray only.
    """

    kind: Literal["ray", "local"]
    num_gpus_per_client: float | Literal["auto"] = 0.0
    threads_per_client: int = 1
    num_workers: int | None = None
    address: str | None = None
    max_retries: int = 0
    client_timeout_seconds: float | None = None
    schedule: Literal["longest_first", "by_partition"] = "longest_first"

    def __post_init__(self) -> None:
        at_least(1, num_workers=self.num_workers, threads_per_client=self.threads_per_client)
        at_least(0, max_retries=self.max_retries)
        gpus = self.num_gpus_per_client
        if gpus != "auto":
            at_least(0, num_gpus_per_client=gpus)
        elif self.kind == "local":
            raise ValueError("num_gpus_per_client must be a number with engine=local, got auto")
        above(0, client_timeout_seconds=self.client_timeout_seconds)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is kept so that a run can go on.

    Attributes:
        every: Rounds between bundles; None writes none.
        keep: Bundles kept, the latest.
        best: Name of the score whose best round keeps its bundle and its encoder; None keeps none.
        best_is: Whether the best value of that score is the largest or the smallest.
    """

    every: int | None
    keep: int
    best: str | None
    best_is: Literal["max", "min"]

    def __post_init__(self) -> None:
        at_least(1, every=self.every, keep=self.keep)


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """When a run ends before its last round.

    Attributes:
        score: Name of a score of the evaluation; None never stops early.
        patience: Evaluations without a new best after which the run ends.
        min_delta: A new best is better than the last by more than this.
        best_is: Whether the best value of that score is the largest or the smallest.
    """

    score: str | None
    patience: int
    min_delta: float
    best_is: Literal["max", "min"]

    def __post_init__(self) -> None:
        at_least(1, patience=self.patience)
        at_least(0, min_delta=self.min_delta)


@dataclass(frozen=True, slots=True)
class Canaries:
    """Examples whose presence is a secret coin, so that an audit can ask the trained encoder for it.

    Attributes:
        fraction: Share of each client's examples that a coin keeps or leaves out; 0 leaves all of them in.
        directions: Further canaries, each a random direction that is pushed wherever units are noised: in every client,
            or at the server, as many as this.
        flipped: Whether every coin is turned: the twin run, which trains on what the other leaves out.
        seed: Names the examples, and the coins where `coins` does not.
        coins: Names the coins alone, so that a shadow run throws others for the same examples; None: `seed` does.
    """

    fraction: float
    flipped: bool
    seed: int
    coins: int | None = None
    directions: int = 0

    def __post_init__(self) -> None:
        within(0, 1, fraction=self.fraction)
        at_least(0, seed=self.seed, directions=self.directions, coins=self.coins)

    @property
    def coin_seed(self) -> int:
        """What the coins are thrown from."""
        return self.seed if self.coins is None else self.coins


@dataclass(frozen=True, slots=True)
class Owners:
    """Clients that change their images by the component "protection" before round 1.

    Attributes:
        fraction: Share of the clients of the partition, rounded.
        absent: Whether they are not in the federation at all: the run that a protected one is compared with.
        seed: Names them; those of a smaller share are among those of a larger one.
    """

    fraction: float
    absent: bool
    seed: int

    def __post_init__(self) -> None:
        within(0, 1, fraction=self.fraction)
        at_least(0, seed=self.seed)
        if self.absent and not 0 < self.fraction < 1:
            raise ValueError(f"fraction must be above 0 and below 1 where absent is true, got {self.fraction}")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything a run is made from; plain data, so that it travels to workers as it is.

    Attributes:
        seed: Root of every random stream.
        rounds: Rounds to run.
        cohort: Clients in a round; None takes all.
        quorum: Fewest updates a round needs to count; None asks for one from every client of the round.
        labelled_rounds: First rounds in which only clients with labels are chosen.
        init: File of an encoder of an earlier run that the backbone begins with; None draws it.
        run_dir: Directory of the run, or None for one under outputs/.
        resume: "auto" goes on from the last bundle of run_dir, or begins where there is none; None always begins.
        evaluate_every: Rounds between evaluations; the last round is always evaluated.
        batch_norm: Whether batch normalisation is averaged as everything else, stays with each client (FedBN, Li et
            al. 2021), or keeps the statistics it was made with and learns its scale and shift alone.
        engine: Where clients run.
        checkpoint: What is kept so that a run can go on.
        early_stop: When a run ends before its last round.
        canaries: Examples whose presence is a secret coin.
        owners: Clients that change their images before round 1.
        components: Constructor and arguments of each exchangeable part.
        text: The whole configuration as YAML; two runs with the same text are the same run.
    """

    seed: int
    rounds: int
    cohort: int | None
    quorum: int | None
    labelled_rounds: int
    init: str | None
    run_dir: str | None
    resume: Literal["auto"] | None
    evaluate_every: int
    batch_norm: Literal["share", "local", "frozen"]
    engine: Engine
    checkpoint: Checkpoint
    early_stop: EarlyStop
    canaries: Canaries
    owners: Owners
    components: Mapping[str, Spec]
    text: str


_VALUES = (
    "seed",
    "rounds",
    "cohort",
    "quorum",
    "labelled_rounds",
    "init",
    "run_dir",
    "resume",
    "evaluate_every",
    "batch_norm",
)
_FREE = ("run_dir", "resume", "engine.", "checkpoint.", "tracking.")  # may change when a run goes on
_BOUND = ("engine.threads_per_client", "engine.num_gpus_per_client")  # these change the bits all the same
_SECTIONS = {
    "engine": Engine,
    "checkpoint": Checkpoint,
    "early_stop": EarlyStop,
    "canaries": Canaries,
    "owners": Owners,
}
NAMES = (*_VALUES, *_SECTIONS, *COMPONENTS)


def build(config: RunConfig, name: str) -> Any:  # noqa: ANN401
    """Construct the component `name`; a wrong argument is reported with its full key.

    Raises:
        ConfigError: A value is missing, or the constructor refused one.
        DataError: The data cannot be used.
    """
    spec = config.components[name]
    if spec["_target_"] is None:
        return None
    if missing := [key for key, value in spec.items() if value == MISSING]:
        raise ConfigError(f"{name}.{missing[0]}={MISSING}: must be given")
    try:
        return instantiate(dict(spec), _convert_="all")
    except HydraException as error:
        cause = error.__cause__
        if type(cause) in (ValueError, TypeError):
            nested = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
            path = f"{name}.{nested.group(1)}" if nested else name
            raise ConfigError(key_first(f"{path}.{cause}")) from cause
        raise (cause or error) from None


def differing_keys(first: str, second: str) -> list[str]:
    """Return the keys in which two configurations differ, of those that the result of a run depends on.

    Args:
        first: `RunConfig.text` of a run.
        second: That of another.

    Returns:
        "key: first value -> second value" of each.
    """
    old, new = (_flat(OmegaConf.to_container(OmegaConf.create(text))) for text in (first, second))
    keys = [key for key in {**old, **new} if not key.startswith(_FREE) or key in _BOUND]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def _flat(tree: Any, path: str = "") -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(tree, dict):
        return {path: tree}
    pairs = (_flat(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items())
    return {key: value for pair in pairs for key, value in pair.items()}


def key_first(text: str) -> str:
    """Return "KEY must be X, got V" as "KEY=V: must be X"; any other text as it is."""
    return re.sub(r"^(\S+) (must .*), got (.*)$", r"\1=\3: \2", text)


def typed(tree: DictConfig) -> RunConfig:
    """Return `tree` as values, each of them checked.

    Raises:
        ConfigError: One line with the key, the value and what is allowed.
    """
    plain: dict[str, Any] = OmegaConf.to_container(tree, resolve=True)  # type: ignore[assignment]
    sections = {name: _section(name, plain[name], kind) for name, kind in _SECTIONS.items()}
    components = {name: plain[name] for name in COMPONENTS}
    for name, spec in components.items():
        _check_component(name, spec)
    values = {name: plain[name] for name in _VALUES}
    config = RunConfig(**values, **sections, components=components, text=OmegaConf.to_yaml(OmegaConf.create(plain)))
    _check_ranges(config)
    return config


def _section(name: str, values: Spec, kind: Callable[..., Any]) -> Any:  # noqa: ANN401
    _require_type(name, values, kind)
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(key_first(f"{name}.{error}")) from error


def _check_ranges(config: RunConfig) -> None:
    hints = get_type_hints(RunConfig)
    for name in _VALUES:
        if not _matches(value := getattr(config, name), hints[name]):
            raise ConfigError(f"{name}={value}: must be {_name(hints[name])}")
    try:
        at_least(0, seed=config.seed, labelled_rounds=config.labelled_rounds)
        at_least(1, rounds=config.rounds, cohort=config.cohort, quorum=config.quorum)
        at_least(1, evaluate_every=config.evaluate_every)
    except ValueError as error:
        raise ConfigError(key_first(str(error))) from error
    if config.resume is not None and config.run_dir is None:
        raise ConfigError(f"resume={config.resume}: needs run_dir=DIR, the run to go on with")
    if config.resume is not None and config.checkpoint.every is None:
        raise ConfigError(f"resume={config.resume}: needs checkpoint.every, which is null")


def _check_component(path: str, spec: Spec) -> None:
    """Check the constructor's root and the names and types of its arguments, nested ones too."""
    target = spec.get("_target_")
    if target is None:
        return
    if not isinstance(target, str) or not target.startswith(IMPORT_ROOTS):
        raise ConfigError(f"{path}._target_={target}: must start with one of {', '.join(IMPORT_ROOTS)}")
    module, _, attribute = target.rpartition(".")
    try:
        constructor = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}._target_={target}: cannot be imported ({error})") from error
    for key, value in spec.items():
        if isinstance(value, Mapping) and "_target_" in value:
            _check_component(f"{path}.{key}", value)
    _require_type(path, {key: value for key, value in spec.items() if not key.startswith("_")}, constructor)


def _require_type(path: str, values: Spec, constructor: Any) -> None:  # noqa: ANN401
    """Compare argument names and values with the constructor's signature."""
    allowed = inspect.signature(constructor).parameters
    owner = constructor.__init__ if inspect.isclass(constructor) else constructor
    hints = get_type_hints(constructor if hasattr(constructor, "__dataclass_fields__") else owner)
    for key, value in values.items():
        if key not in allowed:
            raise ConfigError(f"{path}.{key}={value}: no such setting; allowed: {', '.join(allowed)}")
        if value != MISSING and not isinstance(value, Mapping) and key in hints and not _matches(value, hints[key]):
            raise ConfigError(f"{path}.{key}={value}: must be {_name(hints[key])}")


def _matches(value: Any, hint: Any) -> bool:  # noqa: ANN401
    """Return whether a YAML value fits a type hint; hints that no YAML value can be are let through."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_matches(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    if hint in (str, bool, NoneType):
        return isinstance(value, hint)
    if origin in (tuple, list, Sequence):
        return isinstance(value, list | tuple) and all(_matches(item, arguments[0]) for item in value)
    return True


def _name(hint: Any) -> str:  # noqa: ANN401
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_name(argument) for argument in get_args(hint))
    if get_origin(hint) in (tuple, list, Sequence):
        return f"a list, each {_name(get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}
    return names.get(hint, str(hint))
