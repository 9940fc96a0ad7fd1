"""The tables of an audit: the upper bound beside the lower ones, the attacks, and what came back."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fedssl.privacy.audit.attack import Attack
from fedssl.privacy.audit.claims import CONFIDENCES, VERDICT, Claim
from fedssl.privacy.audit.participants import Participants, Sources
from fedssl.privacy.audit.recovery import Recovery
from fedssl.privacy.audit.run_audit import RunAudit
from fedssl.privacy.audit.shadows import ONLINE
from fedssl.report.units import human_number

if TYPE_CHECKING:
    from rich.table import Table


def print_tables(audit: RunAudit) -> None:
    """Print the tables to stdout."""
    from rich.console import Console

    console = Console()
    if audit.planted is not None:
        console.print(
            _bounds(
                f"{audit.planted.unit} by {audit.planted.guesses.num_canaries} planted canaries", (audit.planted.claim,)
            )
        )
    if audit.attacks:
        console.print(_bounds("example by the encoder", audit.claims))
        console.print(_attacks(audit))
    if audit.memorisation:
        console.print(_memorised(audit))
    if audit.layers:
        console.print(_layers(audit))
    if audit.participants is not None:
        console.print(_participation(audit.participants))
        if audit.participants.sources is not None:
            console.print(_owners(audit.participants.sources))
    if audit.recovery is not None:
        console.print(_recovered(audit.recovery))


def _bounds(of: str, claims: Iterable[Claim]) -> "Table":
    levels = (f"{level:.0%}" for level in CONFIDENCES)
    table = _table("mechanism", "delta", "promised", *levels, "ceiling", "guarantee")
    table.title = f"epsilon of one {of}: promised, and shown"
    for claim in claims:
        bounds = (claim.epsilon, *(claim.lower[level] for level in CONFIDENCES), claim.most[VERDICT])
        table.add_row(claim.mechanism, f"{claim.delta:.3g}", *_numbers(bounds), _verdict(claim))
    return table


def _verdict(claim: Claim) -> str:
    if claim.epsilon is None:
        return "none"
    if not claim.refutable:
        return "out of reach"
    return "violated" if claim.violated else "not refuted"


def _attacks(audit: RunAudit) -> "Table":
    learned = ("as taught",) if audit.accuracies else ()
    table = _attack_table("attack", audit.attacks, *learned, "right guesses")
    for name, each in audit.attacks.items():
        accuracy = _numbers(audit.accuracies.get(name) for _ in learned)
        right = f"{audit.guesses.correct[name]} of {audit.guesses.num_guesses}"
        table.add_row(name, *_cells(each), *accuracy, right)
    if audit.accuracies and ONLINE not in audit.attacks:
        table.caption = "no LiRA: it needs each canary in two shadows and out of two"
    return table


def _attack_table(first: str, attacks: Mapping[str, Attack], *names: str) -> "Table":
    low_rates = next(iter(attacks.values())).tpr_at
    table = _table(first, "AUC", "95 %", *(f"TPR at {rate:.1%}" for rate in low_rates), *names)
    table.columns[0].no_wrap = True
    return table


def _cells(each: Attack) -> tuple[str, ...]:
    return (human_number(each.auc), " to ".join(_numbers(each.interval)), *_numbers(each.tpr_at.values()))


def _participation(found: Participants) -> "Table":
    table = _attack_table("who took part", found.attacks, "in the round")
    for name, each in found.attacks.items():
        table.add_row(name, *_cells(each), f"{int(found.included.sum())} of {len(found.included)}")
    return table


def _owners(found: Sources) -> "Table":
    table = _table("who has an example", "accuracy", "by chance", "examples")
    table.add_row("by least loss", *_numbers((found.accuracy, 1 / found.num_clients)), str(found.num_examples))
    return table


def _recovered(found: Recovery) -> "Table":
    number = len(found.originals)
    table = _table("gradient of a first step", "PSNR, dB", "identified", "an attack of this strength")
    for how, each in found.found.items():
        rate = f"{round(number * each.identified)} of {number}, among {number + found.num_others}"
        table.add_row(how, human_number(each.psnr), rate, "succeeded" if each.succeeded else "failed")
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
