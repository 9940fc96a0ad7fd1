"""Write a protected copy of images or videos: `... protect SOURCE OUT [protection=NAME key=value ...]`."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fedssl.compose import load
from fedssl.config import build
from fedssl.errors import ConfigError, DataError
from fedssl.privacy.unlearnable.protect import NOISE, Order, protect
from fedssl.privacy.unlearnable.protector import Say
from fedssl.privacy.unlearnable.source import open_source

COMPLETED, BAD_INPUT = 0, 2
_GROUP, _DEFAULT = "protection", "em_cluster"


def main(arguments: list[str]) -> int:
    """Protect and return the exit status: 0 completed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m fedssl.privacy.unlearnable protect", description=__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder of images or videos; or a packed file")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder that is written")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="protection=NAME and changes of its values")
    parser.add_argument("--seed", type=int, default=0, help="root of the noise")
    parser.add_argument("--size", type=int, help="height and width the noise is made in; left out: the most common")
    parser.add_argument("--device", default="cpu", help="that the noise is made on, e.g. cuda")
    parser.add_argument("--threads", type=int, default=1, help="cores; another number gives other bits")
    options = parser.parse_intermixed_args(arguments)
    try:
        _run(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return BAD_INPUT
    return COMPLETED


def _run(options: argparse.Namespace) -> None:
    words = [word if word.startswith(_GROUP) else f"{_GROUP}.{word}" for word in options.overrides]
    chosen = [word for word in words if word.startswith(f"{_GROUP}=")] or [f"{_GROUP}={_DEFAULT}"]
    config = load([*chosen, *(word for word in words if word not in chosen)])
    protector = build(config, _GROUP)
    name = chosen[-1].partition("=")[2]
    if protector is None:
        raise ConfigError(f"{_GROUP}={name}: leaves images as they are; choose another")
    if options.out.resolve().is_relative_to(options.source.resolve()):
        raise DataError(f"{options.out}: must lie outside of {options.source}")
    size = None if options.size is None else (options.size, options.size)
    settings = {key: value for key, value in config.components[_GROUP].items() if key != "_target_"}
    order = Order(name, settings, options.seed, size, _device(options.device), options.threads)
    torch.set_num_threads(order.threads)
    torch.use_deterministic_algorithms(True)
    with _bar() as say:
        record = protect(open_source(options.source), options.out, protector, order, say)
    made = f"{record['examples']} examples, {record['patterns']} patterns of at most {record['budget']} levels"
    sys.stdout.write(f"{options.out}: {made}, {name}; keep {NOISE}, whoever has it can take the noise off\n")


def _device(name: str) -> str:
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name}: cannot be used ({str(error).splitlines()[0]})") from error
    return name


@contextmanager
def _bar() -> Iterator[Say]:
    """Show a bar on stderr inside the block, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("")
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)
