"""What protection takes from a federation: runs of one seed beside each other, and what they come to."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedssl.privacy.unlearnable.probe import SCORES, Probe
from fedssl.sweep.study import Outcome
from fedssl.sweep.table import UNTRAINED, Group, axes_of

FRACTION, PRESENCE, PROTECTION = "fraction", "presence", "protection"
PROTECTED, ABSENT = "protected", "absent"
GAP, OWNERS_LOSE, OTHERS_LOSE, FREE_RIDE = "gap", "protected lose", "open lose", "free ride"
EFFECTS = (GAP, OWNERS_LOSE, OTHERS_LOSE, FREE_RIDE)
_ACCURACIES = ("protected", "open", f"{UNTRAINED}protected", f"{UNTRAINED}open")


def effects(protected: Probe, clean: Probe | None, absent: Probe | None) -> dict[str, float]:
    """Return what the protection of some clients comes to, by "gap linear" and so on for each score.

    "protected lose" and "open lose" are what accuracy on the images of protected and of other clients loses to a run
    without protection, and "gap" is by how much the first exceeds the second; where there are no such clients, they
    lose 0. "free ride" is how much more accurate a run with the protected clients is on their clean images than one
    without these clients.

    Args:
        protected: Some clients are protected.
        clean: Nobody is; None where there is no such run.
        absent: They are not in the federation; None where there is no such run.
    """
    found: dict[str, float | None] = {}
    for score in SCORES:
        if clean is not None:
            owners, others = (_lost(clean, protected, score, who) for who in (protected.owners, protected.others))
            found |= {f"{OWNERS_LOSE} {score}": owners, f"{OTHERS_LOSE} {score}": others}
            found[f"{GAP} {score}"] = (owners or 0.0) - (others or 0.0)
        if absent is not None:
            loss = _lost(protected, absent, score, protected.owners)
            found[f"{FREE_RIDE} {score}"] = loss
    return {name: value for name, value in found.items() if value is not None}


def _lost(before: Probe, after: Probe, score: str, parts: frozenset[int]) -> float | None:
    """Return by how much the accuracy on the images of some parts is lower in another run; None: there are none."""
    old, new = before.accuracy(score, parts), after.accuracy(score, parts)
    return None if old is None or new is None else old - new


def joined(outcomes: Sequence[Outcome], probes: Sequence[Probe | None]) -> list[Outcome]:
    """Return the outcomes with the effects of protection among the numbers of those points that have any.

    Args:
        outcomes: Of all points.
        probes: Of each; None where it has none.
    """
    clean, absent = {}, {}
    for outcome, probe in zip(outcomes, probes, strict=True):
        if probe is not None and fraction_of(outcome) == 0:
            clean[_common(outcome)] = probe
        elif probe is not None and outcome.labels.get(PRESENCE) == ABSENT:
            absent[_common(outcome), fraction_of(outcome)] = probe
    found = []
    for outcome, probe in zip(outcomes, probes, strict=True):
        if probe is None or outcome.labels.get(PRESENCE) == ABSENT:
            found.append(outcome)
            continue
        key = _common(outcome)
        more = effects(probe, clean.get(key), absent.get((key, fraction_of(outcome))))
        found.append(replace(outcome, numbers={**outcome.numbers, **more}))
    return found


def fraction_of(point: Outcome | Group) -> float:
    """Return the share of clients that are protected or absent."""
    return float(point.labels[FRACTION])


def _common(outcome: Outcome) -> tuple[tuple[str, str], ...]:
    """Return the labels that runs which are compared have in common, the seed among them."""
    apart = (FRACTION, PRESENCE, PROTECTION)
    return tuple((axis, label) for axis, label in outcome.labels.items() if axis not in apart)


def column_names(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the names of all numbers that some point has: those of the run, then those of the study."""
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.numbers))
    own = [f"{name} {score}" for score in SCORES for name in (*EFFECTS, *_ACCURACIES)]
    return [*(name for name in names if name not in own), *(name for name in own if name in names)]


def group_rows(groups: Sequence[Group], score: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row a group: labels, effects and accuracies by one score, and what came of its points."""
    labels = axes_of(groups)
    names: Mapping[str, str] = {name: f"{name} {score}" for name in (*EFFECTS, *_ACCURACIES)}
    rows = [
        [
            *(group.labels.get(axis, "-") for axis in labels),
            *(group.cell(name) for name in names.values()),
            group.status,
        ]
        for group in groups
    ]
    return [*labels, *names, "points"], rows
