"""The study of privacy: a run, its twin, an attack on its encoder, and utility and leakage against epsilon."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedssl.checks import at_least
from fedssl.report.records import RunResult
from fedssl.sweep.point import RUN, trained
from fedssl.sweep.privacy_plot import save_plot
from fedssl.sweep.privacy_table import (
    AUC,
    BOUND,
    CEILING,
    EPSILON,
    EXAMPLE_BOUND,
    EXAMPLE_CEILING,
    MEMORY,
    NO_EPSILON,
    OF_EXAMPLE,
    SPENT,
    TOP,
    TPR,
    column_names,
    group_rows,
    score_names,
)
from fedssl.sweep.report import Table, write_report
from fedssl.sweep.study import Axes, Outcome, Point, Study, Train, write_json
from fedssl.sweep.table import groups_of

AUDIT = "audit.json"
_CONFIDENCE, _ATTACK, _FALSE_ALARMS = "0.95", "alignment gained", "0.01"
_NOTE = (
    "Numbers are the mean and the standard deviation over seeds. Epsilon and the lower bound are those of the unit of "
    "the mechanism: an example, a cell of examples or a client. The lower bound of an example is to be compared with "
    "the epsilon of an example. Beside each bound is the most that it could be, had every guess been right: an epsilon "
    "above that cannot be refuted. What is gained is above the encoder that a run began with, by seed. The frontier is "
    "one for each mechanism, because promises to different units cannot be compared. Choosing a point by a score on "
    "private data is itself no private release."
)


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
class Privacy(Study):
    """Adds what is spent, and what attacks show: see `fedssl.sweep.privacy_table.PRIVACY`.

    "lower bound" (95 %) is of the mechanism's unit, by canaries that were planted among the units; the others are of an
    example, by the encoder.

    Attributes:
        audit: How each encoder is attacked, for which a twin of each run is trained; None audits nothing.
    """

    told: ClassVar[tuple[str, ...]] = (BOUND, AUC)

    audit: Audit | None = None

    def check(self, grids: Sequence[Axes]) -> None:
        """Raise ValueError where an epsilon is no number."""
        for label in (label for axes in grids for label in axes.get(EPSILON, {}) if label != NO_EPSILON):
            if not label.replace(".", "", 1).isdigit():
                raise ValueError(f"a label of {EPSILON} must be a number or {NO_EPSILON}, got {label}")

    def examine(self, folder: Path, point: Point, result: RunResult, train: Train) -> tuple[dict[str, float], str]:
        """Return what the run spent and, where there is an audit, what its encoder betrays."""
        numbers: dict[str, Any] = {}
        for statement in (result.privacy or [])[:1]:  # the first is of the mechanism's own unit
            numbers |= {SPENT: statement["epsilon"], "delta": statement["delta"]}
        if self.audit is None:
            return numbers, ""
        trained(folder / "twin", [*point.overrides, "canaries.flipped=true"], train)
        audit = _audited(folder, self.audit)
        violated = f"an attack shows more than a guarantee allows, see {AUDIT}" if audit["violated"] else ""
        return numbers | _attacked(audit), violated

    def report(self, folder: Path, outcomes: Sequence[Outcome]) -> Path:
        """Write a table, a picture of utility and leakage against epsilon, and a page with both."""
        groups, scores = groups_of(outcomes), score_names(outcomes)
        picture = ("utility and leakage against epsilon", lambda path: save_plot(path, groups, scores))
        tables = (Table("", *group_rows(groups, scores)),)
        return write_report(folder, outcomes, column_names(outcomes), tables, _NOTE, *picture)


def _audited(folder: Path, audit: Audit) -> Mapping[str, Any]:
    """Return the audit of a point, which is made where it is not there."""
    path = folder / AUDIT
    if not path.exists():
        from fedssl.privacy.audit.run import audit_run

        found = audit_run(folder / RUN, folder / "twin", num_views=audit.num_views, max_examples=audit.max_examples)
        write_json(path, found.to_dict())
    values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _attacked(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an audit that a sweep compares; of several guarantees the tightest."""
    claim = min(audit["claims"], key=lambda each: float("inf") if each["epsilon"] is None else each["epsilon"])
    planted = audit["planted"]
    unit = {} if planted is None else {BOUND: planted["lower"][_CONFIDENCE], CEILING: planted["most"][_CONFIDENCE]}
    attack, memory = audit["attacks"][_ATTACK], audit["sslmem"]["candidate"]
    return {
        **unit,
        OF_EXAMPLE: claim["epsilon"],
        EXAMPLE_BOUND: claim["lower"][_CONFIDENCE],
        EXAMPLE_CEILING: claim["most"][_CONFIDENCE],
        AUC: attack["auc"],
        TPR: attack["tpr_at"][_FALSE_ALARMS],
        MEMORY: memory["mean"],
        TOP: memory["top_mean"],
    }
