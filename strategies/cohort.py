"""Who is there and who takes part: clients are known by partition, and a cohort is a seeded draw."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedssl.errors import RunError
from fedssl.seeding import generator
from fedssl.wire import ClientCard, read_card
from strategies.replies import last_line, replies_in_order

_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Roster:
    """Every client; what is asked of a partition is looked up when it takes part, so a round costs its cohort only.

    Attributes:
        num_clients: Clients, with partitions 0 to num_clients - 1.
        node_of: Returns the node that serves a partition.
        num_examples: Returns the examples that a partition trains on.
        num_labelled: Returns how many of them it knows the label of.
    """

    num_clients: int
    node_of: Callable[[int], int]
    num_examples: Callable[[int], int]
    num_labelled: Callable[[int], int]

    def knows_labels(self) -> bool:
        """Return whether anybody knows a label."""
        return any(self.num_labelled(partition) > 0 for partition in range(self.num_clients))

    def takes_part(self, partition: int, *, labelled: bool) -> bool:
        """Return whether a client has what a round needs: an example, and where it is asked for a label."""
        return (self.num_labelled if labelled else self.num_examples)(partition) > 0

    def sample(self, seed: int, round_number: int, size: int | None, online: Callable[[int], bool] | None) -> list[int]:
        """Draw `size` of the partitions that are online without replacement, those with most examples first.

        Args:
            seed: The run's seed.
            round_number: Names the draw.
            size: Clients to draw; None, or fewer online, takes everyone online.
            online: Says who may be drawn; None is everyone.

        Returns:
            Partitions by falling number of examples, then rising index: the order in which they are worked on, so that
            a long client does not hold up the end of the round, and in which their updates are merged.
        """
        rng = generator(seed, "cohort", round_number)
        if online is not None:
            here = (int(partition) for partition in rng.permutation(self.num_clients) if online(int(partition)))
            chosen = [partition for partition, _ in zip(here, range(size or self.num_clients), strict=False)]
        elif size is None:
            chosen = list(range(self.num_clients))
        else:
            chosen = [int(partition) for partition in rng.choice(self.num_clients, size=size, replace=False)]
        return sorted(chosen, key=lambda partition: (-self.num_examples(partition), partition))


def take_roster(grid: Grid, num_clients: int, waiting: Callable[[int, int], None]) -> Roster:
    """Wait for `num_clients` nodes, telling `waiting` how many there are, and ask each for its card.

    Raises:
        RunError: A client could not say who it is, two clients are the same partition, or one is missing.
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
        try:
            card = read_card(reply.content)
        except (KeyError, ValueError) as error:
            raise RunError(
                f"round 0, node {node}: its card cannot be read ({error}); is it of this version?"
            ) from error
        if card.partition in cards:
            raise RunError(f"round 0, partition {card.partition}: two nodes serve it; give each its own partition-id")
        cards[card.partition], homes[card.partition] = card, node
    _require_everyone(sorted(cards), num_clients)
    return Roster(
        num_clients,
        homes.__getitem__,
        lambda partition: cards[partition].num_examples,
        lambda partition: cards[partition].num_labelled,
    )


def _require_everyone(partitions: Sequence[int], num_clients: int) -> None:
    missing = sorted(set(range(num_clients)) - set(partitions))
    if missing:
        raise RunError(f"round 0, partition {missing[0]}: no node serves it; partition-ids count from 0")
