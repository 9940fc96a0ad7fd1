"""The study of protection: what a federation learns of the images of clients that make them unlearnable."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedssl.privacy.unlearnable.probe import SCORES, Probe, probe_run
from fedssl.report.records import RunResult
from fedssl.sweep.point import RUN
from fedssl.sweep.protection_plot import save_plot
from fedssl.sweep.protection_table import (
    ABSENT,
    FRACTION,
    PRESENCE,
    PROTECTED,
    column_names,
    group_rows,
    joined,
)
from fedssl.sweep.report import Table, write_report
from fedssl.sweep.study import POINTS, Axes, Outcome, Point, Study, Train, directory_name, write_json
from fedssl.sweep.table import groups_of

PROBE = "probe.json"
_NOTE = (
    'Accuracies are those of neighbours and of a linear probe that learned from half of the test images; "unseen" '
    "asks about the other half, in which classes count for as much as among a client's images. A protected client "
    'changed its images before round 1; all images asked about are clean. "lose" is beside the run of the same seed '
    'in which nobody is protected, "gap" what protected clients lose more than open ones; "free ride" is the '
    "accuracy on protected clients' images beside the run without these clients. Numbers are the mean and the "
    "standard deviation over seeds. Protection is empirical: none of these numbers is a guarantee."
)


@dataclass(frozen=True, slots=True)
class Protection(Study):
    """Adds the accuracy on the images of protected (or absent) and of open clients, by each score of the probe."""

    told: ClassVar[tuple[str, ...]] = ("protected linear", "open linear")

    def check(self, grids: Sequence[Axes]) -> None:
        """Raise ValueError where the axes do not say who is protected."""
        for axes in grids:
            for label in axes.get(FRACTION, {"": ()}):
                if not label.replace(".", "", 1).isdigit():
                    raise ValueError(f"each grid must have an axis {FRACTION} of numbers, got {label or 'none'}")
            for label in axes.get(PRESENCE, {}):
                if label not in (PROTECTED, ABSENT):
                    raise ValueError(f"a label of {PRESENCE} must be {PROTECTED} or {ABSENT}, got {label}")

    def examine(self, folder: Path, point: Point, result: RunResult, train: Train) -> tuple[dict[str, float], str]:
        """Return what the encoder of the run knows of the images of either kind of clients."""
        if not (folder / PROBE).exists():
            write_json(folder / PROBE, probe_run(folder / RUN).to_dict())
        return _read(folder).summary(), ""

    def report(self, folder: Path, outcomes: Sequence[Outcome]) -> Path:
        """Write a table a score, a picture of gaps, losses and gains, and a page with all of them."""
        probes = [
            _read(folder / POINTS / directory_name(outcome.labels)) if outcome.status == "done" else None
            for outcome in outcomes
        ]
        compared = joined(outcomes, probes)
        groups = groups_of(compared)
        tables = [Table(score, *group_rows(groups, score)) for score in SCORES]
        picture = ("what protection comes to", lambda path: save_plot(path, groups, SCORES))
        return write_report(folder, compared, column_names(compared), tables, _NOTE, *picture)


def _read(folder: Path) -> Probe:
    return Probe.from_dict(json.loads((folder / PROBE).read_text(encoding="utf-8")))
