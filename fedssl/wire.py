"""The only file that knows record keys: typed values on one side, Flower records on the other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedssl.arrays import Arrays

Setting = int | float | bool | str
NUM_LABELLED = "num-labelled"
"""The metric that says of how many of its examples a client knows the label."""
_EXTRA = "extra."


@dataclass(frozen=True, slots=True)
class TrainTask:
    """What a server asks of a client in a round.

    Attributes:
        round: From 1 on.
        num_rounds: Rounds of the whole run, for schedules.
        seed: The run's seed.
        arrays: Global model tensors by name.
        settings: Named values that a strategy adds for the client procedure.
        extras: Named groups of arrays beside the model (control variates, centroids).
    """

    round: int
    num_rounds: int
    seed: int
    arrays: Arrays
    settings: Mapping[str, Setting] = field(default_factory=dict)
    extras: Mapping[str, Arrays] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalUpdate:
    """What a client answers.

    Attributes:
        partition: The client.
        round: The round of the task that this answers.
        arrays: Tensors by name, the same names as the task's.
        num_examples: Examples trained on; 0 says "nothing to contribute".
        metrics: Named numbers; "loss" is the mean training loss.
        extras: Named groups of arrays beside the model.
    """

    partition: int
    round: int
    arrays: Arrays
    num_examples: int
    metrics: Mapping[str, float]
    extras: Mapping[str, Arrays] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvalTask:
    """What a server asks of every client when the model is evaluated: its round and its tensors by name."""

    round: int
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Scores:
    """What a client answers to an `EvalTask`.

    Attributes:
        partition: The client.
        round: The round of the task that this answers.
        num_examples: Examples it was scored on.
        values: Scores by name.
    """

    partition: int
    round: int
    num_examples: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ClientCard:
    """Who a client is.

    Attributes:
        partition: The client.
        num_examples: Examples that it trains on.
        num_labelled: How many of them it knows the label of.
        device: What it trains on.
    """

    partition: int
    num_examples: int
    num_labelled: int
    device: str


class ArrayView(Array):
    """A Flower array over a NumPy array; its bytes are written when somebody asks for `data`.

    On one machine nobody does: a grid hands the values over as they are. Until then they follow what the NumPy array
    becomes, see `settle`.
    """

    values: NDArray[Any] | None

    def __init__(self, values: NDArray[Any]) -> None:
        # Flower's constructor and setters take longer than the rest of a small tensor's way
        self.__dict__.update(
            dtype=str(values.dtype), shape=values.shape, stype="numpy.ndarray", values=np.asarray(values, order="C")
        )

    @property
    def data(self) -> bytes:
        """The .npy bytes, as Flower writes them."""
        return self._bytes if self.values is None else _npy(self.values)

    @data.setter
    def data(self, data: bytes) -> None:
        self._bytes, self.values = data, None

    def deflate(self) -> bytes:
        """Return what Flower sends for a plain array: a receiver knows no other kind."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()


def to_record(arrays: Arrays) -> ArrayRecord:
    """Write arrays by name into a record, without copying them."""
    record = ArrayRecord()
    for name, value in arrays.items():
        record[name] = ArrayView(value)  # the constructor would write the bytes
    return record


def from_record(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Read arrays by name from a record, without copying them; they are read-only."""
    return {name: _values(array) for name, array in record.items()}


def settle(content: RecordDict) -> RecordDict:
    """Copy the values behind `content`, so that it stays as it is when the arrays it was made from change."""
    for record in content.array_records.values():
        for array in record.values():
            if isinstance(array, ArrayView) and array.values is not None:
                array.values = array.values.copy()
    return content


def _npy(values: NDArray[Any]) -> bytes:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    return b"".join((header.getvalue(), values.data))


def _values(array: Array) -> NDArray[Any]:
    if isinstance(array, ArrayView) and array.values is not None:
        values = array.values.view()
        values.flags.writeable = False
        return values
    return _view(array)


def _view(array: Array) -> NDArray[Any]:
    """Return a read-only view into the .npy bytes of `array`."""
    header = BytesIO(bytes(memoryview(array.data)[:512]))
    version = np.lib.format.read_magic(header)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(header)
    if dtype.hasobject or fortran:
        return array.numpy()
    values: NDArray[Any] = np.frombuffer(array.data, dtype, offset=header.tell()).reshape(shape)
    values.flags.writeable = False
    return values


def write_task(task: TrainTask) -> RecordDict:
    """Encode a task; one record serves every client of the round."""
    records: dict[str, ArrayRecord | ConfigRecord] = {
        "arrays": to_record(task.arrays),
        "config": ConfigRecord(
            {"server-round": task.round, "num-rounds": task.num_rounds, "seed": task.seed, **task.settings}
        ),
    }
    records |= {_EXTRA + name: to_record(arrays) for name, arrays in task.extras.items()}
    return RecordDict(cast(Any, records))


def with_extras(content: RecordDict, extras: Mapping[str, Arrays]) -> RecordDict:
    """Return a task with more groups of arrays; what it shares with others stays the same records."""
    return RecordDict(
        {**dict(content.items()), **{_EXTRA + name: to_record(arrays) for name, arrays in extras.items()}}
    )


def read_task(content: RecordDict) -> TrainTask:
    """Decode a task."""
    config = dict(content.config_records["config"])
    return TrainTask(
        round=int(cast(int, config.pop("server-round"))),
        num_rounds=int(cast(int, config.pop("num-rounds"))),
        seed=int(cast(int, config.pop("seed"))),
        arrays=from_record(content.array_records["arrays"]),
        settings=cast("dict[str, Setting]", config),
        extras=_extras(content),
    )


def write_update(update: LocalUpdate) -> RecordDict:
    """Encode an update, with the keys that Flower's own strategies expect."""
    records: dict[str, ArrayRecord | ConfigRecord | MetricRecord] = {
        "arrays": to_record(update.arrays),
        "metrics": MetricRecord({"num-examples": update.num_examples, **update.metrics}),
        "client": ConfigRecord({"partition": update.partition, "round": update.round}),
    }
    records |= {_EXTRA + name: to_record(arrays) for name, arrays in update.extras.items()}
    return RecordDict(cast(Any, records))


def read_update(content: RecordDict) -> LocalUpdate:
    """Decode an update."""
    metrics = dict(content.metric_records["metrics"])
    client = content.config_records["client"]
    return LocalUpdate(
        partition=int(cast(int, client["partition"])),
        round=int(cast(int, client["round"])),
        arrays=from_record(content.array_records["arrays"]),
        num_examples=int(cast(int, metrics.pop("num-examples"))),
        metrics={name: float(cast(float, value)) for name, value in metrics.items()},
        extras=_extras(content),
    )


def write_eval_task(task: EvalTask) -> RecordDict:
    """Encode an evaluation task; one record serves every client."""
    return RecordDict({"arrays": to_record(task.arrays), "config": ConfigRecord({"server-round": task.round})})


def read_eval_task(content: RecordDict) -> EvalTask:
    """Decode an evaluation task."""
    number = int(cast(int, content.config_records["config"]["server-round"]))
    return EvalTask(number, from_record(content.array_records["arrays"]))


def write_scores(scores: Scores) -> RecordDict:
    """Encode scores."""
    client = ConfigRecord({"partition": scores.partition, "round": scores.round})
    return RecordDict(
        {"metrics": MetricRecord({"num-examples": scores.num_examples, **scores.values}), "client": client}
    )


def read_scores(content: RecordDict) -> Scores:
    """Decode scores."""
    metrics, client = dict(content.metric_records["metrics"]), content.config_records["client"]
    number = int(cast(int, metrics.pop("num-examples")))
    values = {name: float(cast(float, value)) for name, value in metrics.items()}
    return Scores(int(cast(int, client["partition"])), int(cast(int, client["round"])), number, values)


def write_card(card: ClientCard) -> RecordDict:
    """Encode a client's card."""
    counts = {"num-examples": card.num_examples, "num-labelled": card.num_labelled}
    return RecordDict({"card": ConfigRecord({"partition": card.partition, **counts, "device": card.device})})


def read_card(content: RecordDict) -> ClientCard:
    """Decode a client's card."""
    config = content.config_records["card"]
    return ClientCard(
        partition=int(cast(int, config["partition"])),
        num_examples=int(cast(int, config["num-examples"])),
        num_labelled=int(cast(int, config["num-labelled"])),
        device=str(config["device"]),
    )


def _extras(content: RecordDict) -> dict[str, Arrays]:
    named = content.array_records.items()
    return {key.removeprefix(_EXTRA): from_record(record) for key, record in named if key.startswith(_EXTRA)}
