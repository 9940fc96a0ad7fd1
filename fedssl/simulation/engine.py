"""Open the grid that a configuration asks for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.clientapp import ClientApp

from fedssl.config import Engine
from fedssl.simulation.grid import SimulationGrid
from fedssl.simulation.local import LocalGrid


@contextmanager
def open_grid(engine: Engine, make_app: Callable[[], ClientApp], num_clients: int) -> Iterator[SimulationGrid]:
    """Open a grid of `num_clients` nodes and close it at the end, whatever happens."""
    grid = _make(engine, make_app, num_clients)
    try:
        yield grid
    finally:
        grid.close()


def _make(engine: Engine, make_app: Callable[[], ClientApp], num_clients: int) -> SimulationGrid:
    if engine.kind == "local":
        return LocalGrid(make_app(), num_clients)
    from fedssl.simulation.ray_grid import RayGrid

    return RayGrid(make_app, num_clients, engine)
