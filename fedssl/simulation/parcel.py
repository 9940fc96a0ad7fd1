"""Records in the shape that Ray's object store reads without copying: array bytes as NumPy buffers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

_Buffer = tuple[str, tuple[int, ...], str, NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Parcel:
    """A RecordDict taken apart: buffers of arrays, and the small records as they are."""

    arrays: dict[str, dict[str, _Buffer]]
    others: dict[str, MetricRecord | ConfigRecord]


def pack(content: RecordDict) -> Parcel:
    """Take a RecordDict apart; the bytes are shared, not copied."""
    arrays = {
        key: {name: (a.dtype, a.shape, a.stype, np.frombuffer(a.data, np.uint8)) for name, a in record.items()}
        for key, record in content.array_records.items()
    }
    return Parcel(arrays, {**content.metric_records, **content.config_records})


def unpack(parcel: Parcel) -> RecordDict:
    """Put a RecordDict together; array bytes stay where they are."""
    records: dict[str, Any] = dict(parcel.others)
    for key, buffers in parcel.arrays.items():
        records[key] = ArrayRecord()
        for name, buffer in buffers.items():
            records[key][name] = _array(buffer)
    return RecordDict(records)


def _array(buffer: _Buffer) -> Array:
    dtype, shape, stype, data = buffer
    array = Array(dtype, shape, stype, b"")
    array.data = memoryview(data)  # type: ignore[assignment, arg-type]  # every reader of the bytes takes a buffer
    return array


def without_content(message: Message) -> Message:
    """Return a message with the same metadata and nothing inside."""
    return Message(RecordDict(), metadata=message.metadata)  # type: ignore[call-overload,no-any-return]
