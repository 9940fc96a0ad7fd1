"""Typed values survive the way through Flower's records and Ray's parcels."""

import numpy as np
from flwr.app import Context, RecordDict

from fedssl.memory import recall, remember
from fedssl.simulation.parcel import pack, unpack
from fedssl.wire import (
    ClientCard,
    LocalUpdate,
    TrainTask,
    read_card,
    read_task,
    read_update,
    write_card,
    write_task,
    write_update,
)

ARRAYS = {"backbone.w": np.arange(6, dtype=np.float32).reshape(2, 3), "backbone.n": np.array(4, np.int64)}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and np.array_equal(first[k], second[k]) for k in first
    )


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
    card = ClientCard(1, 20, "cpu")
    assert read_card(write_card(card)) == card


def test_a_client_recalls_what_it_remembered() -> None:
    context = Context(1, 1, {}, RecordDict(), {})
    assert recall(context) == {}
    remember(context, ARRAYS)
    assert same(dict(recall(context)), ARRAYS)
