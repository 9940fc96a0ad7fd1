"""Save a run after its rounds, and go on with one that ended early."""

import logging
from pathlib import Path

from flwr.serverapp import Grid

from fedssl import checkpoint
from fedssl.config import Checkpoint, RunConfig, differing_keys
from fedssl.errors import ConfigError
from fedssl.report.rundir import CONFIG
from fedssl.simulation.grid import SimulationGrid
from fedssl.simulation.memories import file_name

LOGGER = logging.getLogger("fedssl")


class Saver:
    """Writes bundles with the memories of clients beside, and deletes what no kept bundle needs.

    Args:
        path: The run directory.
        setting: How often, and what is kept.
        grid: Where the memories of clients are.
    """

    def __init__(self, path: Path, setting: Checkpoint, grid: Grid) -> None:
        self._folder = path / checkpoint.FOLDER
        self._setting = setting
        self._grid = grid
        self._memories = {
            number: checkpoint.load(self._folder, number).memories for number in checkpoint.rounds(self._folder)
        }
        self._written: set[tuple[int, int]] = set()  # files of memories, by partition and round, that may be loose

    def due(self, round_number: int, last: int, best: int | None) -> bool:
        """Return whether a round gets a bundle: every few rounds, at the end, and at a new best."""
        every = self._setting.every
        return every is not None and (round_number % every == 0 or round_number in (last, best))

    def save_memories(self) -> dict[int, int]:
        """Write what clients remember and return the round of each."""
        if not isinstance(self._grid, SimulationGrid):
            return {}
        rounds = self._grid.memories.save(self._folder / checkpoint.MEMORIES)
        self._written |= rounds.items()
        return rounds

    def save(self, bundle: checkpoint.Bundle, best: int | None) -> None:
        """Write a bundle, and let go of those that are neither among the latest nor that of the round `best`."""
        checkpoint.save(self._folder, bundle)
        self._memories[bundle.round] = bundle.memories
        for number in set(self._memories) - {*sorted(self._memories)[-self._setting.keep :], best}:
            checkpoint.delete(self._folder, number)
            self._written |= self._memories.pop(number).items()
        needed = set().union(*(kept.items() for kept in self._memories.values()))
        for partition, written in self._written - needed:
            (self._folder / checkpoint.MEMORIES / file_name(partition, written)).unlink(missing_ok=True)
        self._written &= needed

    def restore(self, bundle: checkpoint.Bundle) -> None:
        """Give the clients of a simulation their memories back; real devices keep their own as long as they run."""
        if isinstance(self._grid, SimulationGrid):
            self._grid.memories.restore(self._folder / checkpoint.MEMORIES, bundle.memories)
        else:
            LOGGER.warning("resume=auto: devices that were restarted begin again with untrained private tensors")


def find_bundle(config: RunConfig, path: Path, fingerprint: str) -> checkpoint.Bundle | None:
    """Return the last bundle of the run in `path`, or None when it has to begin.

    Raises:
        ConfigError: The run in `path` has another configuration or other data, or its bundle cannot be read.
    """
    folder = path / checkpoint.FOLDER
    numbers = checkpoint.rounds(folder)
    bundle = checkpoint.load(folder, numbers[-1]) if numbers else None
    text = (path / CONFIG).read_text(encoding="utf-8") if bundle is None else bundle.config
    differences = differing_keys(text, config.text)
    if differences:
        raise ConfigError(f"resume={config.resume}: {path} holds another run: {'; '.join(differences)}")
    if bundle is not None and bundle.data != fingerprint:
        raise ConfigError(f"resume={config.resume}: {path} was run on other data, or on another partition of it")
    return bundle
