"""How far the clients of a partition share classes and examples, and how much of the data they use.

`python -m fedssl.data.overlap [PARTITION ...] [key=value ...]` counts it; only partitions by pixels decode any
(feature_skew, semantic).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedssl.compose import load
from fedssl.config import build, key_first
from fedssl.data.dataset import Dataset
from fedssl.data.partition import OnDevice, Parts, counts, partition
from fedssl.errors import ConfigError, DataError

COMPLETED, BAD_INPUT = 0, 2
COLUMNS = (
    "clients",
    "classes\neach",
    "classes\ncovered",
    "examples\nused",
    "mean\nclients\nof a used\nexample",
    "most\nclients\nof a\nclass",
)


@dataclass(frozen=True, slots=True)
class Overlap:
    """What clients share.

    Attributes:
        clients_of_class: `[classes]` how many clients hold an example of each class.
        clients_of_example: `[num_examples]` how many clients hold each example.
        classes_of_client: `[clients]` how many classes each client holds.
    """

    clients_of_class: NDArray[np.int64]
    clients_of_example: NDArray[np.int64]
    classes_of_client: NDArray[np.int64]

    @property
    def text(self) -> str:
        """One line: "100 clients of 8 classes: 106 of 400 classes, 60505 of 219664 examples, 3.77 clients each"."""
        clients, each, covered, used, mean, _ = self.cells
        return f"{clients} clients of {each} classes: {covered} classes, {used} examples, {mean} clients each"

    @property
    def cells(self) -> tuple[str, ...]:
        """What `COLUMNS` name."""
        few, many = self.classes_of_client.min(), self.classes_of_client.max()
        classes, used = self.clients_of_class, self.clients_of_example[self.clients_of_example > 0]
        return (
            str(len(self.classes_of_client)),
            str(few) if few == many else f"{few} to {many}",
            f"{np.count_nonzero(classes)} of {len(classes)}",
            f"{len(used)} of {len(self.clients_of_example)}",
            f"{used.mean():.2f}",
            str(classes.max()),
        )


def overlap(dataset: Dataset, parts: Parts) -> Overlap:
    """Return what the clients of a partition share; `parts` are the example indices of each, not all of them empty."""
    held = counts(dataset, parts) > 0
    examples = np.bincount(np.concatenate(parts), minlength=len(dataset))
    return Overlap(held.sum(axis=0), examples, held.sum(axis=1))


def overlaps(words: Sequence[str]) -> dict[str, Overlap]:
    """Return what clients share in each of several partitions of the same training examples.

    Args:
        words: Names of partitions, such as "iid" or "partition=iid", and other settings "key=value"; without a name
            the partition of the configuration is taken, and called "".

    Raises:
        ValueError: A word is wrong, the data cannot be used, or they cannot be divided like this.
    """
    settings = [word for word in words if "=" in word.removeprefix("partition=")]
    names = [word.removeprefix("partition=") for word in words if word not in settings]
    configs = {name: load([*settings, f"partition={name}"]) for name in names} or {"": load(settings)}
    partitioners = {name: build(config, "partition") for name, config in configs.items()}
    if any(isinstance(partitioner, OnDevice) for partitioner in partitioners.values()):
        raise ConfigError("partition=on_device: is for devices, which divide nothing")
    config = next(iter(configs.values()))
    train = build(config, "data").train
    try:
        return {name: overlap(train, partition(train, each, config.seed)) for name, each in partitioners.items()}
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(key_first(str(error))) from error


def main(arguments: list[str]) -> int:
    """Print the line of one partition or the table of several, and return the exit status: 0 completed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m fedssl.data.overlap", description=__doc__)
    parser.add_argument(
        "words", nargs="*", metavar="PARTITION | key=value", help="partitions, and settings that hold for all of them"
    )
    options = parser.parse_args(arguments)
    try:
        found = overlaps(options.words)
    except ValueError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return BAD_INPUT
    if len(found) == 1:
        sys.stdout.write(f"{next(iter(found.values())).text}\n")
    else:
        _show(found)
    return COMPLETED


def _show(found: dict[str, Overlap]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
    table.add_column("partition", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for name, each in found.items():
        table.add_row(name, *each.cells)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
