"""What a client keeps between rounds: private tensors in Flower's `Context.state`."""

from flwr.app import Context

from fedssl.arrays import Arrays
from fedssl.wire import from_record, to_record

_KEY = "private"


def recall(context: Context) -> Arrays:
    """Return the private tensors of the last participation, or none on the first."""
    record = context.state.array_records.get(_KEY)
    return {} if record is None else from_record(record)


def remember(context: Context, private: Arrays) -> None:
    """Keep `private` until the next participation; call it once, last, before the reply."""
    if private:
        context.state[_KEY] = to_record(private)
