"""What a sweep leaves behind: sweep.csv, sweep.md, sweep.png, and index.html that shows all of it."""

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedssl.report.template import STYLE
from fedssl.sweep.study import Outcome
from fedssl.sweep.table import csv_text, markdown

CSV, TABLE, PLOT, PAGE = "sweep.csv", "sweep.md", "sweep.png", "index.html"
_TEMPLATE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{{ title }}</title>
<style>{{ style }} main { max-width: 1500px; } img { max-width: 100%; display: block; margin: 0 auto; }</style></head>
<body><main>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
{% if image %}<section><img src="data:image/png;base64,{{ image }}" alt="{{ alt }}"></section>
{% endif %}<section><p>{{ note }}</p>
{% for each in tables %}{% if each.title %}<h2>{{ each.title }}</h2>
{% endif %}<table><thead><tr>{% for cell in each.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in each.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>{% endfor %}</section>
</main></body></html>
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report; its title may be empty."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        return (f"## {self.title}\n\n" if self.title else "") + markdown(self.header, self.rows) + "\n"


def write_report(
    folder: Path,
    outcomes: Sequence[Outcome],
    columns: Sequence[str],
    tables: Sequence[Table],
    note: str,
    alt: str,
    save_plot: Callable[[Path], bool],
) -> Path:
    """Write the report of a sweep into its folder, and return its page.

    Args:
        folder: Of the sweep.
        outcomes: Of all points, in order.
        columns: Names of the numbers in the CSV.
        tables: What is told.
        note: What a reader must know of them.
        alt: What the picture shows.
        save_plot: Writes the picture and returns whether there was anything to draw.
    """
    from jinja2 import Environment

    folder.mkdir(parents=True, exist_ok=True)
    counts = Counter(outcome.status for outcome in outcomes)
    lead = ", ".join(f"{number} {status}" for status, number in counts.items())
    (folder / CSV).write_text(csv_text(outcomes, columns), encoding="utf-8")
    text = "".join(table.markdown() for table in tables)
    (folder / TABLE).write_text(f"{lead}\n\n{text}{note}\n", encoding="utf-8")
    image = base64.b64encode((folder / PLOT).read_bytes()).decode() if save_plot(folder / PLOT) else ""
    page = (
        Environment(autoescape=True)
        .from_string(_TEMPLATE)
        .render(title=folder.resolve().name, style=STYLE, lead=lead, image=image, alt=alt, note=note, tables=tables)
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE
