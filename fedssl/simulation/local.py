"""The in-process grid: one client after the other in this process."""

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fedssl.simulation.grid import SimulationGrid, answer, may_remember, node_context, round_of
from fedssl.simulation.memories import Memories
from fedssl.wire import settle


class LocalGrid(SimulationGrid):
    """Run each client when its answer is waited for.

    Args:
        app: The client.
        num_clients: Nodes on the grid.
    """

    def __init__(self, app: ClientApp, num_clients: int) -> None:
        super().__init__(num_clients, Memories(lambda state: state, leave_on_disk=True))
        self._app = app

    def advance(self) -> list[Message]:
        """Run the next client."""
        message = self._queue.popleft()
        node = message.metadata.dst_node_id
        kept = self.memories.get(node - 1)
        context = node_context(node, self._num_clients, RecordDict(dict(kept or {})))
        reply = answer(self._app, message, context)
        if context.state and may_remember(message):  # one that failed keeps what it was charged
            self.memories.put(node - 1, round_of(message), settle(context.state))
        if not reply.has_error():
            settle(reply.content)  # the next client works on the same model
        return [reply]

    def close(self) -> None:
        """Forget every client's state."""
        self.memories.clear()
