"""One page that tells a run, readable without a network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedssl.evaluation.neighbours import Answer
from fedssl.report.closing import cost_rows, score_rows
from fedssl.report.neighbours_plot import neighbours_plot
from fedssl.report.plots import angle_curves, loss_curve, partition_plot, pseudo_label_curves, score_curves
from fedssl.report.records import RoundRecord, RunResult
from fedssl.report.rundir import NEIGHBOURS, RunDirectory
from fedssl.report.template import STYLE, TEMPLATE
from fedssl.report.units import human_bytes, human_epsilon, human_number, human_seconds

REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Held:
    """Who holds how many examples of each class.

    Attributes:
        counts: `[clients, classes]`.
        labelled: `[clients, classes]` how many of them are labelled; None where no labels were taken away.
        server: `[classes]` what the server holds, with labels; None where it holds nothing.
        shared: What clients share, in one line (`Overlap.text`); "" leaves it out.
    """

    counts: NDArray[np.integer]
    labelled: NDArray[np.integer] | None = None
    server: NDArray[np.integer] | None = None
    shared: str = ""


def write_report(
    rundir: RunDirectory,
    config_yaml: str,
    records: Sequence[RoundRecord],
    result: RunResult,
    held: Held | None,
    classes: Sequence[str],
    answers: Sequence[Answer] = (),
) -> None:
    """Write report.html into the run directory, and neighbours.png where there are answers.

    Args:
        rundir: Where to write.
        config_yaml: The resolved configuration.
        records: The rounds in order.
        result: What the run came to.
        held: Who holds what; None leaves the partition out.
        classes: Name of each class.
        answers: Test videos with their nearest training videos; none leave the section out.

    Raises:
        ValueError: If the counts are not of `classes`.
    """
    from markupsafe import Markup

    drawn = (
        score_curves(records, result.untrained_scores),
        loss_curve(records),
        pseudo_label_curves(records, classes),
        angle_curves(records),
    )
    plots = [Markup(svg) for svg in drawn if svg]
    partition = "" if held is None else partition_plot(held.counts, classes, held.labelled, held.server)
    neighbours = neighbours_plot(answers) if answers else b""
    if neighbours:
        rundir.write_bytes(NEIGHBOURS, neighbours)
    header, rows = _round_rows(records)
    page = {
        "title": rundir.path.resolve().name,
        "lead": f"{result.status}, {result.rounds_completed} rounds, {human_seconds(result.seconds)}",
        "curves": plots,
        "neighbours": base64.b64encode(neighbours).decode(),
        "partition": Markup(partition),
        "shared": held.shared if held else "",
        "round_header": header,
        "rounds": rows,
        "config_yaml": config_yaml,
        **_tables(records, result),
    }
    rundir.write_text(REPORT, _render(page))


def _tables(records: Sequence[RoundRecord], result: RunResult) -> dict[str, object]:
    failures = [failure for record in records for failure in (*record.failures, *record.absent)]
    return {
        "scores": score_rows(result),
        "costs": cost_rows(result),
        "privacy": [
            [(name, _in_words(name, value)) for name, value in guarantee.items()] for guarantee in result.privacy or []
        ],
        "protection": result.protection,
        "failures": [(failure.round, failure.partition, failure.reason) for failure in failures],
        "versions": list(result.versions.items()),
        "model_sha256": result.model_sha256,
    }


def _in_words(name: str, value: object) -> str:
    """Return a value of a statement as it is read."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return human_epsilon(value) if name.startswith("epsilon") else f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_in_words(key, each)}" for key, each in value.items()) or "-"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(str(each) for each in value) or "-"
    return str(value)


def _round_rows(records: Sequence[RoundRecord]) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row a round; a column for every score that some round has."""
    scores = list(dict.fromkeys(name for record in records for name in record.scores))
    header = ["round", *scores, "loss", "epsilon", "clients", "failures", "absent", "up", "down", "time"]
    rows = [
        [
            str(record.round),
            *(human_number(record.scores.get(name)) for name in scores),
            human_number(record.metrics.get("loss")),
            human_number(record.epsilon),
            str(len(record.clients)),
            str(len(record.failures)),
            str(len(record.absent)),
            human_bytes(record.bytes_up),
            human_bytes(record.bytes_down),
            human_seconds(record.seconds),
        ]
        for record in records
    ]
    return header, rows


def _render(page: Mapping[str, object]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE).render({**page, "style": Markup(STYLE)}) + "\n"
