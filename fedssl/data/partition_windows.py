"""The non-IID clients of FedVSSL (Rehman, ECCV 2022), as its public script makes them and as its lists give them.

The paper speaks of 100 clients of 8 classes each. The script moves its windows of classes by one class and not by four,
so that clients overlap: of 400 classes 106 are used, and a video has about four clients. `overlap` counts it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.data.dataset import Dataset
from fedssl.data.file_dataset import FileDataset
from fedssl.data.partition import Overlapping, Parts
from fedssl.errors import DataError

FIRST_SEED, LAST_SEED = 1234, 4321
"""The script's seeds of the shuffles of small and of large classes."""


@dataclass(frozen=True, slots=True)
class Windows(Overlapping):
    """Clients of a window of the smallest classes and one of the largest, each window one class further than the last.

    Classes are sorted by their number of examples. Client `i` has the classes `i` to `i + width - 1` and, counted from
    the largest, which nobody has, `i + 1` to `i + width`; it shares them with the client `num_clients / 2` further on,
    by halves. A class is shuffled anew, by the same seed, each time that a window comes to it, so that its halves
    differ from window to window. The seed of the run plays no part.

    Attributes:
        num_clients: Number of clients, even.
        width: Classes of a window, half of those that a client has.
    """

    num_clients: int
    width: int = 4

    def __post_init__(self) -> None:
        at_least(1, width=self.width)
        at_least(2, num_clients=self.num_clients)
        if self.num_clients % 2:
            raise ValueError(f"num_clients must be even, got {self.num_clients}")

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the sorted example indices of each client; ValueError if there are too few classes."""
        labels, sizes = np.unique(dataset.labels, return_counts=True)
        windows = self.num_clients // 2
        if windows + self.width > len(labels):
            most = 2 * (len(labels) - self.width)
            raise ValueError(f"partition.num_clients must be at most {most} with these classes, got {self.num_clients}")
        order = labels[np.argsort(sizes, kind="stable")].tolist()
        members = {label: np.flatnonzero(dataset.labels == label).tolist() for label in order}
        halves: list[list[list[int]]] = [[[] for _ in range(windows)] for _ in range(2)]
        for window in range(windows):
            end = len(order) - window - 1
            # the script takes the two windows in turns, which matters where they meet
            pairs = zip(order[window : window + self.width], order[end - self.width : end], strict=True)
            for pair in pairs:
                for label, shuffle in zip(pair, (FIRST_SEED, LAST_SEED), strict=True):
                    Random(shuffle).shuffle(members[label])
                for label in pair:
                    middle = len(members[label]) // 2
                    halves[0][window] += members[label][:middle]
                    halves[1][window] += members[label][middle:]
        return [np.unique(np.array(part, dtype=np.int64)) for part in halves[0] + halves[1]]


@dataclass(frozen=True, slots=True)
class ClientLists(Overlapping):
    """The clients of published lists: `client_dist1.json` to `client_dist100.json`, each `[{"name": "CLASS/VIDEO"}]`.

    Videos that are not in the data set, such as those that left YouTube, are left out.

    Attributes:
        folder: The folder of the lists.
        num_clients: How many there are.
    """

    folder: str
    num_clients: int

    def __post_init__(self) -> None:
        at_least(1, num_clients=self.num_clients)

    def __call__(self, dataset: Dataset, seed: int) -> Parts:
        """Return the sorted example indices of each client.

        Raises:
            DataError: A list is missing or malformed.
            ValueError: The examples are no files.
        """
        if not isinstance(dataset, FileDataset):
            raise ValueError("partition by lists needs a data set of files")
        places = {path.stem: place for place, path in enumerate(dataset.paths)}
        return [self._part(number + 1, places) for number in range(self.num_clients)]

    def _part(self, number: int, places: dict[str, int]) -> NDArray[np.int64]:
        path = Path(self.folder) / f"client_dist{number}.json"
        try:
            stems = [str(entry["name"]).rpartition("/")[2] for entry in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        return np.unique(np.array([places[stem] for stem in stems if stem in places], dtype=np.int64))
