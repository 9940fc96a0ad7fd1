"""What a client keeps between rounds: tensors in Flower's `Context.state`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Context

from fedssl.arrays import Arrays
from fedssl.wire import from_record, to_record

_PRIVATE = "private"
_EXTRA = "extra."


@dataclass(frozen=True, slots=True)
class Memory:
    """What a client remembers of its last participation.

    Attributes:
        tensors: Tensors of the model that are not exchanged.
        extras: Named groups of arrays that its procedure keeps beside the model.
    """

    tensors: Arrays = field(default_factory=dict)
    extras: Mapping[str, Arrays] = field(default_factory=dict)


def recall(context: Context) -> Memory | None:
    """Return what the client remembers; None when it takes part for the first time, or had nothing to keep."""
    records = context.state.array_records
    if not records:
        return None
    extras = {key.removeprefix(_EXTRA): from_record(record) for key, record in records.items() if key != _PRIVATE}
    return Memory(from_record(records[_PRIVATE]) if _PRIVATE in records else {}, extras)


def remember(context: Context, memory: Memory) -> None:
    """Keep `memory` until the next participation; call it once, last, before the reply."""
    for key in list(context.state.array_records):
        del context.state[key]
    if memory.tensors:
        context.state[_PRIVATE] = to_record(memory.tensors)
    for name, arrays in memory.extras.items():
        context.state[_EXTRA + name] = to_record(arrays)
