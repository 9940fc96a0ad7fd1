"""Replies that are wrong in any way are refused by name: none is averaged, none ends the server."""

from collections.abc import Callable, Iterable
from io import BytesIO

import numpy as np
import pytest
from federation import INITIAL, Heard
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedssl.arrays import sha256
from fedssl.simulation.grid import SimulationGrid, failure
from fedssl.simulation.memories import Memories
from fedssl.wire import LocalUpdate, write_update
from strategies.averaging import Averaging
from strategies.base import Plan
from strategies.fedvssl import FedVSSL

Mutate = Callable[[RecordDict, np.random.Generator], None]
CLIENTS = 4
POISON = np.float32(1e6)


def tensor(content: RecordDict, rng: np.random.Generator) -> tuple[ArrayRecord, str]:
    record = content.array_records["arrays"]
    return record, str(rng.choice(sorted(record)))


def replace(content: RecordDict, rng: np.random.Generator, change: Callable[[np.ndarray], np.ndarray]) -> None:
    record, name = tensor(content, rng)
    record[name] = Array(change(record[name].numpy()))


def not_a_number(content: RecordDict, rng: np.random.Generator) -> None:
    record = content.array_records["arrays"]
    values = record["backbone.w"].numpy().copy()
    values.reshape(-1)[rng.integers(values.size)] = rng.choice([np.nan, np.inf, -np.inf])
    record["backbone.w"] = Array(values)


def missing(content: RecordDict, rng: np.random.Generator) -> None:
    record, name = tensor(content, rng)
    del record[name]


def renamed(content: RecordDict, rng: np.random.Generator) -> None:
    record, name = tensor(content, rng)
    record[f"{name}{rng.integers(9)}"] = record.pop(name)


def reshaped(content: RecordDict, rng: np.random.Generator) -> None:
    replace(content, rng, lambda array: array.reshape((*array.shape, 1) if rng.random() < 0.5 else (1, *array.shape)))


def other_dtype(content: RecordDict, rng: np.random.Generator) -> None:
    kind = rng.choice(["float64", "float16", "int32", "complex64", "bool"])
    replace(content, rng, lambda array: array.astype(kind))


def oversized(content: RecordDict, rng: np.random.Generator) -> None:
    replace(content, rng, lambda array: np.full((int(rng.integers(3, 3000)), 7), POISON, array.dtype))


def extra_tensor(content: RecordDict, rng: np.random.Generator) -> None:
    content.array_records["arrays"][f"backbone.extra{rng.integers(99)}"] = Array(np.full(5, POISON))


def damaged_bytes(content: RecordDict, rng: np.random.Generator) -> None:
    record, name = tensor(content, rng)
    data = bytearray(record[name].data)
    data[int(rng.integers(0, 40))] ^= 0xFF  # the header: what follows it is values, and any value is legal
    record[name].data = bytes(data)


def truncated(content: RecordDict, rng: np.random.Generator) -> None:
    record, name = tensor(content, rng)
    record[name].data = record[name].data[: int(rng.integers(0, len(record[name].data)))]


def appended(content: RecordDict, rng: np.random.Generator) -> None:
    record, name = tensor(content, rng)
    record[name].data = record[name].data + b"\0" * int(rng.integers(1, 99))


def pickled(content: RecordDict, rng: np.random.Generator) -> None:
    record, name = tensor(content, rng)
    buffer = BytesIO()
    np.save(buffer, record[name].numpy().astype(object), allow_pickle=True)
    record[name].data = buffer.getvalue()


def no_record(content: RecordDict, rng: np.random.Generator) -> None:
    del content[str(rng.choice(sorted(content)))]


def other_record(content: RecordDict, rng: np.random.Generator) -> None:
    others = [ConfigRecord({"text": "?"}), MetricRecord({"x": 1.0}), ArrayRecord()]
    content[str(rng.choice(sorted(content)))] = others[int(rng.integers(3))]


def wrong_round(content: RecordDict, rng: np.random.Generator) -> None:
    content.config_records["client"]["round"] = int(rng.choice([0, 1, 3, 2**40, -2]))


def wrong_partition(content: RecordDict, rng: np.random.Generator) -> None:
    content.config_records["client"]["partition"] = int(rng.choice([0, 2, 3, -1, 10**9]))


def wrong_metric(content: RecordDict, rng: np.random.Generator) -> None:
    content.metric_records["metrics"]["loss"] = float(rng.choice([np.nan, np.inf, -np.inf]))


def wrong_count(content: RecordDict, rng: np.random.Generator) -> None:
    content.metric_records["metrics"]["num-examples"] = int(rng.integers(-(10**6), 0))


def no_loss(content: RecordDict, rng: np.random.Generator) -> None:
    del content.metric_records["metrics"]["loss"]


MUTATIONS: list[Mutate] = [
    not_a_number, missing, renamed, reshaped, other_dtype, oversized, extra_tensor, damaged_bytes, truncated, appended,
    pickled, no_record, other_record, wrong_round, wrong_partition, wrong_metric, wrong_count, no_loss,
]  # fmt: skip
EACH = 40  # 720 mutations in all


class Mutating(SimulationGrid):
    """Answers every message; the reply of partition 1 in round 2 is spoilt, or there is none when `spoil` is None."""

    def __init__(self, spoil: Callable[[RecordDict], None] | None, twice: bool = False) -> None:
        super().__init__(CLIENTS, Memories(lambda state: state, leave_on_disk=False))
        self.spoil, self.twice = spoil, twice

    def advance(self) -> list[Message]:
        message = self._queue.popleft()
        partition, number = message.metadata.dst_node_id - 1, int(message.metadata.group_id)
        arrays = {"backbone.w": np.full((2, 3), partition + number, np.float32), "backbone.n": np.array(7)}
        content = write_update(LocalUpdate(partition, number, arrays, partition + 1, {"loss": float(partition)}))
        if (partition, number) == (1, 2):
            if self.spoil is None:
                return [failure(message, "none")]
            self.spoil(content)
        return [Message(content, reply_to=message)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        return [*replies, *replies] if self.twice else replies

    def close(self) -> None: ...


def run(spoil: Callable[[RecordDict], None] | None, twice: bool = False) -> Heard:
    heard = Heard()
    plan = Plan(3, 0, CLIENTS, None, 1, num_examples=lambda partition: partition + 1)
    strategy = FedVSSL(alpha=0.5, beta=1)
    strategy.start(Mutating(spoil, twice), INITIAL, plan, heard, frozenset({"backbone.n"}))
    return heard


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_spoilt_reply_is_refused_and_the_result_is_that_without_it(mutate: Mutate) -> None:
    without = run(None)
    for seed in range(EACH):
        heard = run(lambda content, seed=seed: mutate(content, np.random.default_rng(seed)))
        assert [(failed.round, failed.partition) for failed, _ in heard.failures] == [(2, 1)], seed
        assert heard.failures[0][0].reason.isprintable()
        assert heard.sha256 == without.sha256, seed


def test_a_reply_that_comes_twice_counts_once() -> None:
    assert run(lambda _: None, twice=True).sha256 == run(lambda _: None).sha256


def test_a_client_with_nothing_to_contribute_is_no_failure_and_has_no_weight() -> None:
    def nothing(content: RecordDict) -> None:
        content.metric_records["metrics"]["num-examples"] = 0

    heard = run(nothing)
    assert heard.failures == []
    assert heard.records[1].clients == (3, 2, 1, 0)
    assert heard.sha256 == run(None).sha256


def test_a_round_in_which_nobody_contributes_leaves_the_model_as_it_is() -> None:
    grid = Mutating(None)
    heard = Heard()
    plan = Plan(1, 0, CLIENTS, None, 0, num_examples=lambda _: 1, availability=Nobody())
    Averaging().start(grid, INITIAL, plan, heard, frozenset())
    assert heard.sha256 == sha256(INITIAL)
    assert heard.records[0].clients == ()


class Nobody:
    deadline_seconds, idle_seconds = None, 60.0

    def online(self, seed: int, partition: int, now: float) -> bool:
        return False

    def seconds(self, seed: int, partition: int, round_number: int, num_examples: int) -> None:
        return None
