"""Who is there and who takes part: clients are known by partition, and a cohort is a seeded draw."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedssl.errors import RunError
from fedssl.seeding import generator
from fedssl.wire import ClientCard, read_card

_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Roster:
    """Every client by partition, with the node that serves it."""

    cards: dict[int, ClientCard]
    nodes: dict[int, int]

    def sample(self, seed: int, round_number: int, size: int | None) -> list[int]:
        """Draw `size` partitions without replacement, sorted; None takes all."""
        everyone = sorted(self.cards)
        if size is None:
            return everyone
        chosen = generator(seed, "cohort", round_number).choice(everyone, size=size, replace=False)
        return sorted(int(partition) for partition in chosen)


def replies_in_order(grid: Grid, messages: Sequence[Message]) -> Iterator[Message]:
    """Send `messages` and yield their replies in the order of the messages, each as soon as it is its turn."""
    waiting = list(grid.push_messages(messages))
    arrived: dict[str, Message] = {}
    for message_id in list(waiting):
        while message_id not in arrived:
            news = list(grid.pull_messages([other for other in waiting if other not in arrived]))
            arrived |= {reply.metadata.reply_to_message_id: reply for reply in news}
            if not news:
                time.sleep(_PAUSE_SECONDS)
        waiting.remove(message_id)
        yield arrived.pop(message_id)


def take_roster(grid: Grid, num_clients: int, waiting: Callable[[int, int], None]) -> Roster:
    """Wait for `num_clients` nodes, telling `waiting` how many there are, and ask each for its card.

    Raises:
        RunError: A client could not say who it is, or two clients are the same partition.
    """
    while len(nodes := sorted(grid.get_node_ids())) < num_clients:
        waiting(len(nodes), num_clients)
        time.sleep(_PAUSE_SECONDS)
    messages = [Message(RecordDict(), node, MessageType.QUERY, group_id="0") for node in nodes]
    cards: dict[int, ClientCard] = {}
    homes: dict[int, int] = {}
    for reply, node in zip(replies_in_order(grid, messages), nodes, strict=True):
        if reply.has_error():
            raise RunError(f"round 0, node {node}: {last_line(reply.error.reason)}")
        card = read_card(reply.content)
        if card.partition in cards:
            raise RunError(f"round 0, partition {card.partition}: two nodes serve it; give each its own partition-id")
        cards[card.partition], homes[card.partition] = card, node
    return Roster(cards, homes)


def last_line(reason: str | None) -> str:
    """Return the last line of a traceback, which says what went wrong."""
    lines = (reason or "no reason given").strip().splitlines()
    return lines[-1] if lines else "no reason given"
