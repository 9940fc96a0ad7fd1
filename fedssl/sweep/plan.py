"""The points of a sweep: the product of its axes, each a run by its overrides."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fedssl.checks import at_least
from fedssl.compose import choices, load, load_sweep
from fedssl.errors import ConfigError
from fedssl.sweep.privacy import Audit, Privacy
from fedssl.sweep.protection import Protection
from fedssl.sweep.study import Axes, Point, Study

_KEYS = ("base", "grids", "processes")
_STUDY, _AUDIT = "study", "audit"
_OWN = ("sweep", "sweep_dir", "processes")


@dataclass(frozen=True, slots=True)
class Sweep:
    """A grid of runs.

    Attributes:
        folder: Where everything is written.
        points: In the order they are run.
        study: What is done with each run.
        processes: Points that are run at once.
    """

    folder: Path
    points: tuple[Point, ...]
    study: Study
    processes: int

    def __post_init__(self) -> None:
        at_least(1, processes=self.processes)
        if not self.points:
            raise ValueError("no point has all of the chosen labels")
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
    data = _read(name) if name is not None else {"base": [], "grids": [{}], _AUDIT: None, "processes": 1}
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
        study = _study(data)
        study.check(grids)
        sweep = Sweep(folder, expand([{**axes, **more} for axes in grids], data["base"], last), study, int(processes))
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
    if not isinstance(data, dict) or data.get(_STUDY, "privacy") not in ("privacy", "protection"):
        raise ConfigError(f"sweep={name}: must have study: privacy or study: protection")
    keys = _KEYS if data.get(_STUDY) == "protection" else (*_KEYS, _AUDIT)
    if set(data) - {_STUDY} != set(keys):
        raise ConfigError(f"sweep={name}: must have {', '.join(keys)}")
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
    return data


def _study(data: dict[str, Any]) -> Study:
    """Return what the file of a sweep is for."""
    if data.get(_STUDY) == "protection":
        return Protection()
    return Privacy(Audit(**data[_AUDIT]) if data[_AUDIT] else None)
