"""The in-process grid: one client after the other in this process."""

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fedssl.simulation.grid import SimulationGrid, answer, node_context


class LocalGrid(SimulationGrid):
    """Run each client when its answer is waited for.

    Args:
        app: The client.
        num_clients: Nodes on the grid.
    """

    def __init__(self, app: ClientApp, num_clients: int) -> None:
        super().__init__(num_clients)
        self._app = app
        self._states: dict[int, RecordDict] = {}

    def advance(self) -> list[Message]:
        """Run the next client."""
        message = self._queue.popleft()
        node = message.metadata.dst_node_id
        kept = self._states.get(node, RecordDict())
        context = node_context(node, self._num_clients, RecordDict(dict(kept)))
        reply = answer(self._app, message, context)
        if not reply.has_error():
            self._states[node] = context.state
        return [reply]

    def close(self) -> None:
        """Forget every client's state."""
        self._states.clear()
