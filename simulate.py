"""Run one federated experiment on this machine: `python simulate.py [experiment=NAME] [key=value ...]`.

With -m it is a sweep: `python simulate.py -m sweep=NAME [key=value ...] [key=a,b ...] [sweep_dir=DIR] [processes=N]`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flwr.clientapp import ClientApp

from clients.app import client_app
from fedssl.compose import groups, load
from fedssl.config import RunConfig
from fedssl.errors import ConfigError, DataError, RunError
from fedssl.prepare import prepare
from fedssl.report.closing import print_closing_table
from fedssl.report.records import RunResult
from fedssl.simulation.engine import open_grid
from fedssl.sweep.plan import read_plan
from fedssl.sweep.run import run_sweep
from strategies.app import run, run_directory

COMPLETED, BAD_INPUT, FAILED = 0, 2, 3


class MakeClient:
    """Makes the client app from a configuration; plain data, so that it travels to workers."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def __call__(self) -> ClientApp:
        """Return the app."""
        return client_app(lambda _: self.config)


def main(arguments: list[str]) -> int:
    """Run and return the exit status: 0 completed, 2 bad input, 3 the run failed."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    choices = "\n".join(f"  {name}={{{','.join(names)}}}" for name, names in groups().items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"groups:\n{choices}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any setting of conf/")
    parser.add_argument("-m", "--multirun", action="store_true", help="run every point of a grid, and go on with it")
    options = parser.parse_intermixed_args(arguments)
    try:
        if options.multirun:
            return run_sweep(read_plan(options.overrides), simulate)
        result, path = simulate(options.overrides)
    except (ConfigError, DataError) as error:
        return _say(BAD_INPUT, error)
    except (RunError, KeyboardInterrupt) as error:
        return _say(FAILED, str(error) or "interrupted; the same command goes on with a sweep")
    print_closing_table(result)
    sys.stdout.write(f"report: {path / 'report.html'}\n")
    return COMPLETED


def simulate(overrides: Sequence[str]) -> tuple[RunResult, Path]:
    """Run once and return the result and the run directory; ConfigError, DataError or RunError where that fails."""
    config = load(overrides)
    config = replace(config, run_dir=str(run_directory(config)))  # so that workers know it, too
    workspace = prepare(config)
    if workspace.parts is None:
        raise ConfigError("partition=on_device: is for devices; choose another to simulate")
    with open_grid(config.engine, MakeClient(config), workspace.num_clients) as grid:
        return run(config, grid)


def _say(status: int, error: object) -> int:
    sys.stderr.write(" ".join(str(error).split()) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
