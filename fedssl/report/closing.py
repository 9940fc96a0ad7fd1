"""The table that closes a run: each score beside that of the untrained encoder, then what the run cost."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedssl.report.records import RunResult
from fedssl.report.units import human_bytes, human_difference, human_epsilon, human_number, human_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def score_rows(result: RunResult) -> list[tuple[str, str, str, str]]:
    """Return (name, untrained, final, difference) of each score that either encoder has."""
    names = list(dict.fromkeys([*result.scores, *result.untrained_scores]))
    pairs = [(name, result.untrained_scores.get(name), result.scores.get(name)) for name in names]
    return [(name, human_number(old), human_number(new), human_difference(new, old)) for name, old, new in pairs]


def cost_rows(result: RunResult) -> list[tuple[str, str]]:
    """Return (name, value) of what the run came to and cost, in human units."""
    rows = [
        ("status", result.status),
        ("rounds", str(result.rounds_completed)),
        ("clients", str(result.clients)),
        ("failures", str(result.failures)),
        ("sent by clients", human_bytes(result.bytes_up)),
        ("sent to clients", human_bytes(result.bytes_down)),
        ("time", human_seconds(result.seconds)),
    ]
    rows += [("guarantee", _bound(statement)) for statement in result.privacy or [{}]]
    if result.protection is not None:
        rows.append(("protection, empirical", result.protection))
    if result.virtual_seconds is not None:
        rows.append(("virtual time", human_seconds(result.virtual_seconds)))
    if result.stopped_early is not None:
        rows.append(("stopped early", result.stopped_early))
    if result.best is not None:
        rows.append(("best", ", ".join(f"{name} {value:.4g}" for name, value in result.best.items())))
    return rows


def _bound(statement: Mapping[str, object]) -> str:
    """Return a guarantee in a few words; the whole sentence stands in result.json."""
    epsilon, delta = statement.get("epsilon"), statement.get("delta")
    if not isinstance(epsilon, float | int) or not isinstance(delta, float | int):
        return "none"
    return f"epsilon {human_epsilon(epsilon)}, delta {delta:.2g}, one {statement['unit']} ({statement['adjacency']})"


def closing_table(result: RunResult, width: int = 100) -> str:
    """Return the closing table as text without colour, at most `width` columns wide."""
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    _show(result, Console(file=stream, width=width, no_color=True, force_terminal=False))
    return stream.getvalue()


def print_closing_table(result: RunResult) -> None:
    """Print the closing table to stdout."""
    from rich.console import Console

    _show(result, Console())


def _show(result: RunResult, console: "Console") -> None:
    console.print(_scores(result))
    console.print(_costs(result))


def _scores(result: RunResult) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("score")
    for name in ("untrained", "final", "difference"):
        table.add_column(name, justify="right")
    for row in score_rows(result):
        table.add_row(*(Text(cell) for cell in row))
    return table


def _costs(result: RunResult) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for row in cost_rows(result):
        table.add_row(*(Text(cell) for cell in row))
    return table
