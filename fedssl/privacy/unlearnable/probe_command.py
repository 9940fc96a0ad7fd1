"""Show what a run knows of protected and of open clients' images: `... probe RUN_DIR [key=value ...]`."""

import argparse
import json
import sys
from pathlib import Path

from fedssl.privacy.unlearnable.probe import SCORES, Probe, probe_run
from fedssl.report.rundir import RunDirectory
from fedssl.report.units import human_number

COMPLETED, BAD_INPUT = 0, 2
FILE = "probe.json"


def main(arguments: list[str]) -> int:
    """Print one table, write `probe.json` into the directory of the run, and return 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m fedssl.privacy.unlearnable probe", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory that a run left behind")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the run's own configuration")
    options = parser.parse_args(arguments)
    try:
        probe = probe_run(options.run_dir, options.overrides)
        RunDirectory(options.run_dir).write_text(FILE, json.dumps(probe.to_dict(), indent=1) + "\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return BAD_INPUT
    _show(probe)
    return COMPLETED


def _show(probe: Probe) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("accuracy", box=box.SIMPLE_HEAD, caption="on clean images")
    sides = {"protected": probe.owners, "open": probe.others}
    for name in sides:
        table.add_column(f"{name}, untrained", justify="right")
        table.add_column("trained", justify="right")
    for score in SCORES:
        cells = [
            human_number(probe.accuracy(score, parts, trained=trained))
            for parts in sides.values()
            for trained in (False, True)
        ]
        table.add_row(score, *cells)
    Console().print(table)
