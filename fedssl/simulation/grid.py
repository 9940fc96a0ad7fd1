"""What both grids share: Flower's Grid over nodes on this machine, one node a partition."""

import time
import traceback
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedssl.simulation.memories import Memories

ClientFailed = 1


class SimulationGrid(Grid):
    """A queue of messages to nodes 1..num_clients; node n serves partition n - 1.

    Args:
        num_clients: Nodes on the grid.
        memories: What clients keep between rounds.
    """

    def __init__(self, num_clients: int, memories: Memories) -> None:
        identify()
        self.memories = memories
        self._num_clients = num_clients
        self._run = Run.create_empty(1)
        self._queue: deque[Message] = deque()
        self._replies: dict[str, Message] = {}
        self._unanswered: set[str] = set()
        self._count = 0

    def set_run(self, run: Run) -> None:
        """Set the run this grid works for."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid works for."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return every node."""
        return range(1, self._num_clients + 1)

    @staticmethod
    def node_of(partition: int) -> int:
        """Return the node that serves a partition; nobody needs to be asked."""
        return partition + 1

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        pushed = list(messages)
        for message in pushed:
            self._count += 1
            message.metadata.__dict__["_message_id"] = str(self._count)
        self._queue.extend(self.scheduled(pushed))
        ids = [message.metadata.message_id for message in pushed]
        self._unanswered.update(ids)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies that are there; when none is, wait for the next one."""
        wanted = set(message_ids)
        while wanted & self._unanswered and not wanted & self._replies.keys():
            for reply in self.advance():
                self._unanswered.discard(reply.metadata.reply_to_message_id)
                self._replies[reply.metadata.reply_to_message_id] = reply
        return [self._replies.pop(message_id) for message_id in sorted(wanted & self._replies.keys(), key=int)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Queue messages and return the replies that came before the timeout."""
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        end = None if timeout is None else time.monotonic() + timeout
        while waiting and (end is None or time.monotonic() < end):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def scheduled(self, messages: list[Message]) -> list[Message]:
        """Return messages in the order in which they are worked on; by default that in which they are sent."""
        return messages

    @abstractmethod
    def advance(self) -> list[Message]:
        """Work until at least one queued message is answered, and return the answers."""

    @abstractmethod
    def close(self) -> None:
        """Free what the grid holds."""


def identify() -> None:
    """Give this process the identity that Flower's Message asks for outside its own runtimes."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def round_of(message: Message) -> int:
    """Return the round that a message belongs to."""
    return int(message.metadata.group_id)


def may_remember(message: Message) -> bool:
    """Return whether a client keeps what it has after answering: training changes it, a question does not."""
    return message.metadata.message_type == MessageType.TRAIN


def node_context(node: int, num_clients: int, state: RecordDict) -> Context:
    """Return the context of a node, as Flower's own simulation makes it."""
    node_config: dict[str, bool | float | int | str] = {"partition-id": node - 1, "num-partitions": num_clients}
    return Context(1, node, node_config, state, {})


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Run the app; an exception becomes an error reply with its whole traceback."""
    try:
        return app(message, context)
    except Exception:  # noqa: BLE001 - a client may fail in any way; the server must hear of each
        return failure(message, traceback.format_exc())


def failure(message: Message, reason: str) -> Message:
    """Return the reply that says why there is none; the last line of `reason` is its summary."""
    return Message(Error(ClientFailed, reason), reply_to=message)
