"""What a sweep leaves behind: sweep.csv, sweep.md, sweep.png, and index.html that shows all of it."""

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedssl.report.template import STYLE
from fedssl.sweep.plot import save_plot
from fedssl.sweep.point import Outcome
from fedssl.sweep.table import csv_text, group_rows, groups_of, markdown, score_names

CSV, TABLE, PLOT, PAGE = "sweep.csv", "sweep.md", "sweep.png", "index.html"
_NOTE = (
    "Numbers are the mean and the standard deviation over seeds. Epsilon is that of the unit of the mechanism: an "
    "example, a cell of examples or a client; the lower bound is for one example, to be compared with the epsilon of "
    "an example. The frontier is one for each mechanism, because promises to different units cannot be compared. "
    "Choosing a point by a score on private data is itself no private release."
)
_TEMPLATE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{{ title }}</title>
<style>{{ style }} main { max-width: 1500px; } img { max-width: 100%; display: block; margin: 0 auto; }</style></head>
<body><main>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
{% if image %}<section><img src="data:image/png;base64,{{ image }}" alt="utility and leakage against epsilon"></section>
{% endif %}<section><p>{{ note }}</p>
<table><thead><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></section>
</main></body></html>
"""


def write_report(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write the report of a sweep into its folder, and return its page.

    Args:
        folder: Of the sweep.
        outcomes: Of all points, in order.
    """
    from jinja2 import Environment

    folder.mkdir(parents=True, exist_ok=True)
    groups, scores = groups_of(outcomes), score_names(outcomes)
    header, rows = group_rows(groups, scores)
    counts = Counter(outcome.status for outcome in outcomes)
    lead = ", ".join(f"{number} {status}" for status, number in counts.items())
    (folder / CSV).write_text(csv_text(outcomes), encoding="utf-8")
    (folder / TABLE).write_text(f"{lead}\n\n{markdown(header, rows)}\n{_NOTE}\n", encoding="utf-8")
    image = ""
    if save_plot(folder / PLOT, groups, scores):
        image = base64.b64encode((folder / PLOT).read_bytes()).decode()
    page = (
        Environment(autoescape=True)
        .from_string(_TEMPLATE)
        .render(title=folder.resolve().name, style=STYLE, lead=lead, image=image, note=_NOTE, header=header, rows=rows)
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE
