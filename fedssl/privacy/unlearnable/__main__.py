"""Write a protected copy of images or videos, or look into a run that had protected clients."""

import argparse
import sys

from fedssl.privacy.unlearnable import probe_command, protect_command

COMMANDS = {"protect": protect_command.main, "probe": probe_command.main}


def main(arguments: list[str]) -> int:
    """Run a command and return its exit status: 0 completed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m fedssl.privacy.unlearnable", description=__doc__)
    parser.add_argument("command", choices=tuple(COMMANDS), help="-h after it says more")
    return COMMANDS[parser.parse_args(arguments[:1]).command](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
