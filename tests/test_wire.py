"""Typed values survive the way through Flower's records and Ray's parcels."""

import numpy as np
from flwr.app import Array, Context, RecordDict

from fedssl.memory import Memory, recall, remember
from fedssl.simulation.parcel import pack, unpack
from fedssl.wire import (
    ClientCard,
    LocalUpdate,
    TrainTask,
    from_record,
    read_card,
    read_task,
    read_update,
    settle,
    to_record,
    write_card,
    write_task,
    write_update,
)

ARRAYS = {"backbone.w": np.arange(6, dtype=np.float32).reshape(2, 3), "backbone.n": np.array(4, np.int64)}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and np.array_equal(first[k], second[k]) for k in first
    )


def test_an_array_is_sent_as_flower_sends_its_own() -> None:
    for name, array in ARRAYS.items():
        sent = to_record(ARRAYS)[name]
        assert sent.data == Array(array).data
        assert sent.deflate() == Array(array).deflate()
        assert sent.object_id == Array(array).object_id


def test_a_settled_record_does_not_follow_its_arrays() -> None:
    values = np.zeros(3, np.float32)
    content = RecordDict({"arrays": to_record({"w": values})})
    kept = settle(content).array_records["arrays"]
    values[:] = 1
    assert from_record(kept)["w"].tolist() == [0, 0, 0]


def test_a_task_and_an_update_come_back_as_they_were_sent() -> None:
    task = TrainTask(3, 10, 7, ARRAYS, {"mu": 0.5}, {"control": ARRAYS})
    back = read_task(unpack(pack(write_task(task))))
    assert (back.round, back.num_rounds, back.seed, back.settings) == (3, 10, 7, {"mu": 0.5})
    assert same(back.arrays, ARRAYS)
    assert same(back.extras["control"], ARRAYS)
    update = read_update(unpack(pack(write_update(LocalUpdate(2, 3, ARRAYS, 9, {"loss": 1.5}, {"c": ARRAYS})))))
    assert (update.partition, update.num_examples, update.metrics) == (2, 9, {"loss": 1.5})
    assert same(update.arrays, ARRAYS)
    assert same(update.extras["c"], ARRAYS)


def test_a_card_comes_back_as_it_was_sent() -> None:
    card = ClientCard(1, 20, 5, "cpu")
    assert read_card(write_card(card)) == card


def test_a_client_recalls_what_it_remembered() -> None:
    context = Context(1, 1, {}, RecordDict(), {})
    assert recall(context) is None
    remember(context, Memory(ARRAYS, {"control": ARRAYS}))
    assert same(recall(context).tensors, ARRAYS)
    assert same(recall(context).extras["control"], ARRAYS)
    remember(context, Memory(ARRAYS))
    assert recall(context).extras == {}
