"""Run one federated experiment on this machine: `python simulate.py [experiment=NAME] [key=value ...]`."""

import argparse
import logging
import sys

from clients.app import client_app
from fedssl.config import RunConfig, build, groups, load
from fedssl.errors import ConfigError, DataError, RunError
from fedssl.report.closing import print_closing_table
from fedssl.simulation.engine import open_grid
from fedssl.workspace import open_workspace
from strategies.app import run, run_directory

COMPLETED, BAD_INPUT, FAILED = 0, 2, 3


class MakeClient:
    """Makes the client app from a configuration; plain data, so that it travels to workers."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def __call__(self) -> object:
        """Return the app."""
        return client_app(lambda _: self.config)


def main(arguments: list[str]) -> int:
    """Run and return the exit status: 0 completed, 2 bad input, 3 the run failed."""
    logging.getLogger("flwr").propagate = False
    options = "\n".join(f"  {name}={{{','.join(names)}}}" for name, names in groups().items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"groups:\n{options}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any setting of conf/")
    try:
        config = load(parser.parse_args(arguments).overrides)
        workspace = open_workspace(config)
        num_clients = len(workspace.parts)
        _check(config, num_clients)
    except (ConfigError, DataError, FileNotFoundError) as error:
        return _say(BAD_INPUT, error)
    except ValueError as error:
        return _say(BAD_INPUT, error)
    path = run_directory(config)
    try:
        with open_grid(config.engine, MakeClient(config), num_clients) as grid:  # type: ignore[arg-type]
            result, path = run(config, grid, path)
    except ConfigError as error:
        return _say(BAD_INPUT, error)
    except (RunError, DataError) as error:
        return _say(FAILED, f"run failed: {error}; run directory {path}")
    print_closing_table(result)
    sys.stdout.write(f"report: {path / 'report.html'}\n")
    return COMPLETED


def _check(config: RunConfig, num_clients: int) -> None:
    if config.cohort is not None and config.cohort > num_clients:
        raise ConfigError(f"cohort={config.cohort}: must be at most the {num_clients} clients")
    for name in ("model", "client", "strategy", "augmentation", "evaluation", "objective"):
        build(config, name)


def _say(status: int, error: object) -> int:
    sys.stderr.write(" ".join(str(error).split()) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
