"""Evaluate the encoder of a finished run: `python -m fedssl.evaluation RUN_DIR [evaluation=NAME] [data=NAME ...]`."""

import argparse
import sys
from pathlib import Path

from fedssl.errors import ConfigError, DataError
from fedssl.evaluation.transfer import Comparison, evaluate_run
from fedssl.report.units import human_difference, human_number

COMPLETED, BAD_INPUT = 0, 2


def main(arguments: list[str]) -> int:
    """Print one table and return the exit status: 0 completed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m fedssl.evaluation", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory that a run left behind")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the run's own configuration")
    options = parser.parse_args(arguments)
    try:
        _show(evaluate_run(options.run_dir, options.overrides))
    except (ConfigError, DataError, FloatingPointError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return BAD_INPUT
    return COMPLETED


def _show(comparison: Comparison) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("score")
    for name in ("untrained", "trained", "difference"):
        table.add_column(name, justify="right")
    for name, new in comparison.trained.items():
        old = comparison.untrained[name]
        cells = name, human_number(old), human_number(new), human_difference(new, old)
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
