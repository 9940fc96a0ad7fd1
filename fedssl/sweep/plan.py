"""The points of a sweep: the product of its axes, each a run by its overrides."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fedssl.checks import at_least
from fedssl.config import choices, load, load_sweep
from fedssl.errors import ConfigError

SEED, EPSILON, MECHANISM = "seed", "epsilon", "mechanism"
NO_EPSILON = "none"
_KEYS = ("base", "grids", "audit", "processes")
_OWN = ("sweep", "sweep_dir", "processes")

Axes = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Audit:
    """How the encoder of each point is attacked.

    Attributes:
        num_views: Views of each example.
        max_examples: Most canaries, and most examples of each other group.
    """

    num_views: int
    max_examples: int

    def __post_init__(self) -> None:
        at_least(2, num_views=self.num_views, max_examples=self.max_examples)


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep.

    Attributes:
        labels: Its value on each axis; that on "seed" is averaged over.
        overrides: What it is made from.
    """

    labels: Mapping[str, str]
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its directory."""
        parts = (re.sub(r"[^\w.+-]+", "-", f"{axis}-{label}").strip("-") for axis, label in self.labels.items())
        return "_".join(parts) or "point"


@dataclass(frozen=True, slots=True)
class Sweep:
    """A grid of runs.

    Attributes:
        folder: Where everything is written.
        points: In the order they are run.
        audit: How each encoder is attacked, for which a twin of each run is trained; None audits nothing.
        processes: Points that are run at once.
    """

    folder: Path
    points: tuple[Point, ...]
    audit: Audit | None
    processes: int

    def __post_init__(self) -> None:
        at_least(1, points=len(self.points), processes=self.processes)
        names = [point.name for point in self.points]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"points must differ in their names, got {min(twice)} twice")


def expand(grids: Sequence[Axes], base: Sequence[str] = (), last: Sequence[str] = ()) -> tuple[Point, ...]:
    """Return the points of every grid, the last axis fastest.

    Args:
        grids: By the name of an axis, the overrides that each of its labels stands for.
        base: Overrides of all points, which come first.
        last: Those that come last, and so have the last word.
    """
    points = []
    for axes in grids:
        for combination in product(*(labels.items() for labels in axes.values())):
            chosen = dict(zip(axes, combination, strict=True))
            overrides = (word for _, words in chosen.values() for word in words)
            points.append(Point({axis: label for axis, (label, _) in chosen.items()}, (*base, *overrides, *last)))
    return tuple(points)


def read_plan(words: Sequence[str]) -> Sweep:
    """Return the sweep that the words of a command line ask for.

    Args:
        words: "sweep=NAME" takes the grid of `conf/sweep/NAME.yaml`, and "axis=a,b" these labels of an axis of it;
            "key=a,b" is another axis, "key=value" is set in all points, "sweep_dir=DIR" is where everything is
            written, "processes=N" is how many run at once.

    Raises:
        ConfigError: A word, the file or a point cannot be used; one line.
    """
    own = dict(word.split("=", 1) for word in words if word.partition("=")[0] in _OWN and "=" in word)
    name = own.get("sweep")
    data = _read(name) if name is not None else {"base": [], "grids": [{}], "audit": None, "processes": 1}
    grids: list[Axes] = data["grids"]
    known = {axis for axes in grids for axis in axes}
    last, more = [], {}
    for word in words:
        key = word.partition("=")[0]
        if key in own:
            continue
        values = [each.partition("=")[2] for each in choices(word)]
        if key in known:
            grids = _restricted(grids, key, values)
        elif len(values) > 1:
            more[key] = {value: [f"{key}={value}"] for value in values}
        else:
            last.append(word)
    folder = Path(own.get("sweep_dir", f"outputs/sweeps/{name or 'grid'}"))
    processes = own.get("processes", str(data["processes"]))
    if not processes.isdigit():
        raise ConfigError(f"processes={processes}: must be a whole number")
    try:
        audit = Audit(**data["audit"]) if data["audit"] else None
        sweep = Sweep(folder, expand([{**axes, **more} for axes in grids], data["base"], last), audit, int(processes))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"sweep={name}: {error}") from error
    seen: set[tuple[str, str]] = set()
    for place, point in enumerate(sweep.points):
        labels = set(point.labels.items())
        if place == 0 or labels - seen:  # composing takes a while, so each label is tried once
            load(point.overrides)
        seen |= labels
    return sweep


def _restricted(grids: Sequence[Axes], axis: str, labels: Sequence[str]) -> list[Axes]:
    """Return the grids with some labels of an axis alone; those that have none of them have no points."""
    allowed = list(dict.fromkeys(label for axes in grids for label in axes.get(axis, {})))
    if unknown := [label for label in labels if label not in allowed]:
        raise ConfigError(f"{axis}={unknown[0]}: no such label of the sweep; allowed: {', '.join(allowed)}")
    return [
        {**axes, axis: {label: words for label, words in axes[axis].items() if label in labels}}
        for axes in grids
        if axis in axes
    ]


def _read(name: str) -> dict[str, Any]:
    """Return the file of a sweep with every label a text."""
    data = load_sweep(name)
    if not isinstance(data, dict) or set(data) != set(_KEYS):
        raise ConfigError(f"sweep={name}: must have {', '.join(_KEYS)}")
    try:
        data["grids"] = [
            {
                str(axis): {str(label): [str(word) for word in words or ()] for label, words in labels.items()}
                for axis, labels in axes.items()
            }
            for axes in data["grids"]
        ]
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"sweep={name}: grids must be a list of axis: {{label: [override, ...]}}") from error
    for label in (label for axes in data["grids"] for label in axes.get(EPSILON, {}) if label != NO_EPSILON):
        if not label.replace(".", "", 1).isdigit():
            raise ConfigError(f"sweep={name}: a label of {EPSILON} must be a number or {NO_EPSILON}, got {label}")
    return data
