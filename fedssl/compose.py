"""From the files of `conf/` and overrides to a run configuration, composed by Hydra."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

import fedssl
from fedssl.config import COMPONENTS, NAMES, RunConfig, typed
from fedssl.errors import ConfigError

CONF = Path(fedssl.__file__).parent.parent / "conf"
SWEEP = "sweep"


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
            return typed(tree)
        except ConfigError:
            raise
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, words)) from error


def load_run(text: str, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration of a run that was written down, changed by `overrides`.

    Args:
        text: `RunConfig.text` of the run.
        overrides: "data=digits" replaces all of that group by an option of `conf/`, "data.seed=1" changes one value.

    Raises:
        ConfigError: One line with the key, the value and what is allowed.
    """
    options = [word for word in overrides if word.partition("=")[0] in COMPONENTS]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            tree = cast(DictConfig, OmegaConf.create(text))
            if missing := [name for name in NAMES if name not in tree]:
                raise ConfigError(f"the configuration has no {missing[0]}: it is not of a run of this version")
            fresh = compose("config", overrides=["~experiment", *options])
            for name in {word.partition("=")[0] for word in options}:
                tree[name] = OmegaConf.to_container(fresh[name])
            for word in (word for word in overrides if word not in options):
                if (first := re.split(r"[.=]", word)[0]) in tree and first not in NAMES:
                    raise ConfigError(f"{word}: is a part of other values, which are written out; set those instead")
                tree = _with_value(tree, word)
            return typed(tree)
        except (YAMLError, HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, overrides)) from error


def _with_value(tree: DictConfig, word: str) -> DictConfig:
    """Return `tree` with the value of one override."""
    key, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"{word}: not of the form key=value")
    if (allowed := _unknown(tree, key)) is not None:
        raise ConfigError(f"{key}={value}: no such setting; allowed: {allowed}")
    merged = OmegaConf.merge(tree, OmegaConf.from_dotlist([word]))
    return cast(DictConfig, merged)


def load_sweep(name: str) -> Any:  # noqa: ANN401
    """Return the file of a sweep, which is no part of a run, as plain data; `fedssl.sweep.plan` reads it.

    Raises:
        ConfigError: There is no such sweep, or its file is not YAML.
    """
    if name not in (names := groups()[SWEEP]):
        raise ConfigError(f"{SWEEP}={name}: no such option; allowed: {', '.join(names)}")
    try:
        return OmegaConf.to_container(OmegaConf.load(CONF / SWEEP / f"{name}.yaml"))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{SWEEP}={name}: {_one_line(error)}") from error


def groups() -> dict[str, list[str]]:
    """Return the options of every configuration group."""
    folders = (folder for folder in sorted(CONF.iterdir()) if folder.is_dir())
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


def choices(word: str) -> list[str]:
    """Return each override that "key=a,b" stands for; a word with one value as it is.

    Raises:
        ConfigError: It is not an override.
    """
    try:
        override = OverridesParser.create().parse_override(word)
        if not override.is_sweep_override():
            return [word]
        return [f"{word.partition('=')[0]}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise ConfigError(_explain(error, [word])) from error


def _explain(error: Exception, words: Sequence[str]) -> str:
    """Turn a composition error into one line that says which override is wrong and what is allowed."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value; a value with = , or spaces in it needs quotes inside"
    options = groups()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            return f"{word}: not of the form key=value"
        group = key.partition("@")[0]  # group@place puts an option where a part of another one is
        if group in options and value not in options[group]:
            return f"{key}={value}: no such option; allowed: {', '.join(options[group])}"
        if group == SWEEP:
            return f"{word}: is no part of a run; python simulate.py -m {word} runs its points"
    chosen = [word for word in words if word.partition("=")[0] in options]
    try:
        base = compose("config", overrides=chosen)
    except (HydraException, OmegaConfBaseException):
        return _one_line(error)
    for word in words:
        key, _, value = word.partition("=")
        wrong = _unknown(base, key) if key not in options else None
        if wrong is not None:
            return f"{key}={value}: no such setting; allowed: {wrong}"
    return _one_line(error)


def _unknown(tree: DictConfig, key: str) -> str | None:
    """Return the names allowed where `key` leaves the tree, or None when it does not."""
    node: Any = tree
    for part in key.lstrip("+~").split("."):
        if not isinstance(node, DictConfig) or part not in node:
            names = list(node) if isinstance(node, DictConfig) else ["(a value, not a group)"]
            return ", ".join(str(name) for name in names if not str(name).startswith("_")) or "none of this option"
        node = node._get_node(part)  # a missing value ("???") is still a known key
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
