"""Records in the shape that Ray's object store reads without copying: arrays as NumPy buffers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedssl.wire import ArrayView

_Bytes = tuple[str, tuple[int, ...], str, NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Parcel:
    """A RecordDict taken apart: the values or the bytes of its arrays, and the small records as they are."""

    arrays: dict[str, dict[str, NDArray[Any] | _Bytes]]
    others: dict[str, MetricRecord | ConfigRecord]


def pack(content: RecordDict) -> Parcel:
    """Take a RecordDict apart; nothing is copied."""
    arrays = {
        key: {name: _taken_apart(array) for name, array in record.items()}
        for key, record in content.array_records.items()
    }
    return Parcel(arrays, {**content.metric_records, **content.config_records})


def unpack(parcel: Parcel) -> RecordDict:
    """Put a RecordDict together; arrays stay where they are."""
    records: dict[str, Any] = dict(parcel.others)
    for key, parts in parcel.arrays.items():
        records[key] = ArrayRecord()
        for name, part in parts.items():
            records[key][name] = _put_together(part)
    return RecordDict(records)


def _taken_apart(array: Array) -> NDArray[Any] | _Bytes:
    if isinstance(array, ArrayView) and array.values is not None:
        return array.values
    return array.dtype, array.shape, array.stype, np.frombuffer(array.data, np.uint8)


def _put_together(part: NDArray[Any] | _Bytes) -> Array:
    if isinstance(part, np.ndarray):
        return ArrayView(part)
    dtype, shape, stype, data = part
    array = Array(dtype, shape, stype, b"")
    array.data = memoryview(data)  # type: ignore[assignment, arg-type]  # every reader of the bytes takes a buffer
    return array


def without_content(message: Message) -> Message:
    """Return a message with the same metadata and nothing inside."""
    return Message(RecordDict(), metadata=message.metadata)  # type: ignore[call-overload,no-any-return]
