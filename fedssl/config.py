"""The typed run configuration: composed by Hydra, checked once, the same for every runtime."""

import inspect
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import fedssl
from fedssl.errors import ConfigError

CONF = Path(fedssl.__file__).parent.parent / "conf"
IMPORT_ROOTS = ("fedssl.", "strategies.", "clients.", "torch.optim.", "flwr.serverapp.strategy.")
COMPONENTS = ("data", "partition", "model", "objective", "augmentation", "client", "strategy", "evaluation", "tracking")
MISSING = "???"
Spec = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Engine:
    """Where clients run: on Ray workers or in this process.

    Attributes:
        kind: The grid.
        num_gpus_per_client: Share of a GPU that a client uses; 0 trains on the CPU.
        threads_per_client: Cores that a client uses.
        num_workers: Worker processes; None takes as many as the cores carry. Ray only.
        address: A running Ray cluster ("auto"), or None for one of this run. Ray only.
        max_retries: How often a client is run again after its worker died. Ray only.
    """

    kind: Literal["ray", "local"]
    num_gpus_per_client: float
    threads_per_client: int
    num_workers: int | None = None
    address: str | None = None
    max_retries: int = 0


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything a run is made from; plain data, so that it travels to workers as it is.

    Attributes:
        seed: Root of every random stream.
        rounds: Rounds to run.
        cohort: Clients in a round; None takes all.
        quorum: Fewest updates a round needs to count; None asks for one from every client of the round.
        run_dir: Directory of the run, or None for one under outputs/.
        evaluate_every: Rounds between evaluations; the last round is always evaluated.
        engine: Where clients run.
        components: Constructor and arguments of each exchangeable part.
        text: The whole configuration as YAML; two runs with the same text are the same run.
    """

    seed: int
    rounds: int
    cohort: int | None
    quorum: int | None
    run_dir: str | None
    evaluate_every: int
    engine: Engine
    components: Mapping[str, Spec]
    text: str


def load(overrides: Sequence[str] | str) -> RunConfig:
    """Compose `conf/` with `overrides` ("rounds=3 strategy.alpha=0.5") and check every value.

    Raises:
        ConfigError: One line with the key, the value and what is allowed.
    """
    words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            tree = compose("config", overrides=words)
            return _typed(tree)
        except ConfigError:
            raise
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, words)) from error


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
            raise ConfigError(key_first(f"{name}.{cause}")) from cause
        raise (cause or error) from None


def key_first(text: str) -> str:
    """Return "KEY must be X, got V" as "KEY=V: must be X"; any other text as it is."""
    return re.sub(r"^(\S+) (must .*), got (.*)$", r"\1=\3: \2", text)


def _typed(tree: DictConfig) -> RunConfig:
    plain: dict[str, Any] = OmegaConf.to_container(tree, resolve=True)  # type: ignore[assignment]
    engine = plain["engine"]
    _require_type("engine", engine, Engine)
    components = {name: plain[name] for name in COMPONENTS}
    for name, spec in components.items():
        _check_component(name, spec)
    config = RunConfig(
        seed=plain["seed"],
        rounds=plain["rounds"],
        cohort=plain["cohort"],
        quorum=plain["quorum"],
        run_dir=plain["run_dir"],
        evaluate_every=plain["evaluate_every"],
        engine=Engine(**engine),
        components=components,
        text=OmegaConf.to_yaml(OmegaConf.create(plain)),
    )
    _check_ranges(config)
    return config


def _check_ranges(config: RunConfig) -> None:
    for field, hint in get_type_hints(RunConfig).items():
        value = getattr(config, field)
        if field not in ("engine", "components", "text") and not _matches(value, hint):
            raise ConfigError(f"{field}={value}: must be {_name(hint)}")
    least = {"seed": 0, "rounds": 1, "cohort": 1, "quorum": 1, "evaluate_every": 1}
    for field, bound in least.items():
        value = getattr(config, field)
        if value is not None and value < bound:
            raise ConfigError(f"{field}={value}: must be at least {bound}")
    engine = config.engine
    if engine.num_workers is not None and engine.num_workers < 1:
        raise ConfigError(f"engine.num_workers={engine.num_workers}: must be at least 1")
    if engine.threads_per_client < 1:
        raise ConfigError(f"engine.threads_per_client={engine.threads_per_client}: must be at least 1")
    if engine.num_gpus_per_client < 0:
        raise ConfigError(f"engine.num_gpus_per_client={engine.num_gpus_per_client}: must be 0 or more")
    if engine.max_retries < 0:
        raise ConfigError(f"engine.max_retries={engine.max_retries}: must be 0 or more")


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
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}
    return names.get(hint, str(hint))


def groups() -> dict[str, list[str]]:
    """Return the options of every configuration group."""
    folders = (folder for folder in sorted(CONF.iterdir()) if folder.is_dir())
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


def _explain(error: Exception, words: Sequence[str]) -> str:
    """Turn a composition error into one line that says which override is wrong and what is allowed."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value; a value with = , or spaces in it needs quotes inside"
    options = groups()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            return f"{word}: not of the form key=value"
        if key in options and value not in options[key]:
            return f"{key}={value}: no such option; allowed: {', '.join(options[key])}"
    chosen = [word for word in words if word.partition("=")[0] in options]
    try:
        base = compose("config", overrides=chosen)
    except (HydraException, OmegaConfBaseException):
        return _one_line(error)
    for word in words:
        key, _, value = word.partition("=")
        wrong = _unknown(base, key) if key not in options else None
        if wrong:
            return f"{key}={value}: no such setting; allowed: {wrong}"
    return _one_line(error)


def _unknown(tree: DictConfig, key: str) -> str | None:
    """Return the names allowed where `key` leaves the tree, or None when it does not."""
    node: Any = tree
    for part in key.lstrip("+~").split("."):
        if not isinstance(node, DictConfig) or part not in node:
            names = list(node) if isinstance(node, DictConfig) else ["(a value, not a group)"]
            return ", ".join(str(name) for name in names if not str(name).startswith("_"))
        node = node._get_node(part)  # a missing value ("???") is still a known key
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
