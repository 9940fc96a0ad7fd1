"""From messages to sound updates: their order, and what is refused by name."""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedssl.arrays import Arrays, not_finite
from fedssl.wire import LocalUpdate, read_update

_PAUSE_SECONDS = 0.05


def replies_in_order(grid: Grid, messages: Sequence[Message]) -> Iterator[Message]:
    """Send `messages` and yield their replies in the same order; replies that are early wait where the grid keeps them.

    A reply to anything else, or a second reply to the same message, is not listened to.
    """
    for message_id in list(grid.push_messages(messages)):
        while True:
            news = [r for r in grid.pull_messages([message_id]) if r.metadata.reply_to_message_id == message_id]
            if news:
                break
            time.sleep(_PAUSE_SECONDS)
        yield news[0]


def read_sound(
    reply: Message,
    partition: int,
    round_number: int,
    current: Arrays,
    metrics: Collection[str],
    extras: Mapping[str, Arrays],
) -> LocalUpdate:
    """Return the update in a reply.

    Args:
        reply: The answer of a client.
        partition: Who was asked.
        round_number: In which round.
        current: The global arrays it was sent, whose names, shapes and dtypes an update must have.
        metrics: Names of numbers it must report.
        extras: Named groups of arrays it must bring beside the model, with their names, shapes and dtypes.

    Raises:
        ValueError: Why it must not be merged, in one line.
    """
    try:
        update = read_update(reply.content)
    except Exception as error:  # bytes from outside can be wrong in any way
        raise ValueError(f"the reply cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
    wrong = _wrong_sender(update, partition, round_number) or _wrong_numbers(update, metrics)
    wrong = wrong or _wrong_arrays(update.arrays, current) or _wrong_extras(update, extras)
    wrong = wrong or _wrong_values(update)
    if wrong is not None:
        raise ValueError(wrong)
    return update


def _wrong_sender(update: LocalUpdate, partition: int, round_number: int) -> str | None:
    if update.partition != partition:
        return f"the answer came from partition {update.partition}"
    return None if update.round == round_number else f"the answer is to round {update.round}"


def _wrong_numbers(update: LocalUpdate, metrics: Collection[str]) -> str | None:
    if update.num_examples < 0:
        return f"num-examples is {update.num_examples}"
    missing = sorted(set(metrics) - set(update.metrics))
    if missing:
        return f"metric {missing[0]} is missing"
    wrong = next((name for name, value in update.metrics.items() if not math.isfinite(value)), None)
    return None if wrong is None else f"metric {wrong} is {update.metrics[wrong]}"


def _wrong_arrays(arrays: Arrays, expected: Arrays) -> str | None:
    for problem, names in (("missing", set(expected) - set(arrays)), ("unknown", set(arrays) - set(expected))):
        if names:
            return f"{min(names)} is {problem}"
    for name, array in arrays.items():
        if array.shape != expected[name].shape or array.dtype != expected[name].dtype:
            return f"{name} is {array.dtype}{array.shape}, not {expected[name].dtype}{expected[name].shape}"
    return None


def _wrong_extras(update: LocalUpdate, expected: Mapping[str, Arrays]) -> str | None:
    for group, arrays in expected.items():
        if group not in update.extras:
            return f"{group} is missing: does the client procedure go with the strategy?"
        if (wrong := _wrong_arrays(update.extras[group], arrays)) is not None:
            return f"{group}: {wrong}"
    return None


def _wrong_values(update: LocalUpdate) -> str | None:
    broken = (not_finite(arrays) for arrays in (update.arrays, *update.extras.values()))
    name = next((name for name in broken if name is not None), None)
    return None if name is None else f"{name} holds values that are not finite"


def last_line(reason: str | None) -> str:
    """Return the last line of a traceback, which says what went wrong."""
    lines = (reason or "no reason given").strip().splitlines()
    return lines[-1] if lines else "no reason given"
