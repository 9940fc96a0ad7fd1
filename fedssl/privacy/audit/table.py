"""The tables of an audit: the upper bound beside the lower ones, the attacks, and what is memorised."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedssl.privacy.audit.claims import CONFIDENCES, Claim
from fedssl.privacy.audit.run import RunAudit
from fedssl.report.units import human_number

if TYPE_CHECKING:
    from rich.table import Table


def print_tables(audit: RunAudit) -> None:
    """Print the tables to stdout."""
    from rich.console import Console

    console = Console()
    console.print(_bounds(audit))
    console.print(_attacks(audit))
    if audit.memorisation:
        console.print(_memorised(audit))
    if audit.layers:
        console.print(_layers(audit))


def _bounds(audit: RunAudit) -> "Table":
    lower = (f"least, {level:.0%}" for level in CONFIDENCES)
    table = _table("epsilon of one example", "delta", "most", *lower, "guarantee")
    for claim in audit.claims:
        bounds = (claim.epsilon, *(claim.lower[level] for level in CONFIDENCES))
        table.add_row(claim.unit, f"{claim.delta:.3g}", *_numbers(bounds), _verdict(claim))
    return table


def _verdict(claim: Claim) -> str:
    if claim.epsilon is None:
        return "none"
    return "violated" if claim.violated else "not refuted"


def _attacks(audit: RunAudit) -> "Table":
    low_rates = next(iter(audit.attacks.values())).tpr_at
    names = (f"TPR at {rate:.1%}" for rate in low_rates)
    table = _table("attack", "AUC", "95 %", *names, "right guesses")
    for name, each in audit.attacks.items():
        interval = " to ".join(_numbers(each.interval))
        numbers = _numbers(each.tpr_at.values())
        right = f"{audit.guesses.correct[name]} of {audit.guesses.num_guesses}"
        table.add_row(name, human_number(each.auc), interval, *numbers, right)
    return table


def _memorised(audit: RunAudit) -> "Table":
    table = _table("SSLMem", "examples", "mean", "top 1 %", "KS distance", "p value")
    for name, each in audit.memorisation.items():
        numbers = _numbers((each.mean, each.top_mean, each.ks_statistic))
        table.add_row(name, str(len(each.raw)), *numbers, f"{each.ks_p_value:.2g}")
    return table


def _layers(audit: RunAudit) -> "Table":
    table = _table("SSLMem of a stage", "candidate", "independent", "increase of candidate")
    for name, each in audit.layers.items():
        table.add_row(name, *_numbers((each.candidate, each.independent, each.increase)))
    return table


def _numbers(values: Iterable[float | None]) -> tuple[str, ...]:
    return tuple(human_number(value) for value in values)


def _table(first: str, *names: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="right")
    return table
