"""The share of clients with labels in the mean, with values that can be computed by hand."""

from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict

from fedssl.simulation.grid import identify
from fedssl.wire import NUM_LABELLED, LocalUpdate, write_update
from strategies.averaging import Averaging
from strategies.labelled_share import LabelledShare
from strategies.replies import read_sound

CURRENT = {"backbone.w": np.zeros(2), "backbone.n": np.array(0)}


def updates(*labelled: int) -> Iterator[LocalUpdate]:
    """Clients with the values 1, 3 and 7, of 10, 30 and 10 examples."""
    for partition, (value, examples, known) in enumerate(zip((1, 3, 7), (10, 30, 10), labelled, strict=True)):
        arrays = {"backbone.w": np.full(2, value, np.float64), "backbone.n": np.array(value)}
        yield LocalUpdate(partition, 1, arrays, examples, {NUM_LABELLED: float(known)})


@pytest.mark.parametrize(
    ("labelled", "share", "expected"),
    [
        ((10, 0, 0), 0.5, 2.5),  # 1 and (30*3 + 10*7) / 40 = 4, half and half
        ((10, 0, 0), 0.25, 3.25),  # 0.25*1 + 0.75*4
        ((0, 0, 1), 0.5, 4.75),  # one known label makes a client labelled: 7 and (10*1 + 30*3) / 40 = 2.5
        ((10, 0, 0), 0.0, 4.0),
        ((10, 0, 0), 1.0, 1.0),
        ((10, 0, 0), 0.2, 3.4),  # 10 of 50 examples: FedAvg
    ],
)
def test_clients_with_labels_together_count_their_share(
    labelled: tuple[int, ...], share: float, expected: float
) -> None:
    merged = LabelledShare(labelled_share=share).merge(CURRENT, updates(*labelled), 1)
    assert merged["backbone.w"] == pytest.approx([expected, expected], abs=1e-12)


@pytest.mark.parametrize("labelled", [(10, 30, 10), (0, 0, 0)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_round_with_one_kind_is_that_of_fedavg(labelled: tuple[int, ...], share: float) -> None:
    merged = LabelledShare(labelled_share=share).merge(CURRENT, updates(*labelled), 1)
    plain = Averaging().merge(CURRENT, updates(*labelled), 1)
    assert np.array_equal(merged["backbone.w"], plain["backbone.w"])


def test_a_share_that_is_that_of_the_examples_is_fedavg() -> None:
    merged = LabelledShare(labelled_share=0.8).merge(CURRENT, updates(1, 2, 0), 1)
    assert merged["backbone.w"] == pytest.approx(Averaging().merge(CURRENT, updates(1, 2, 0), 1)["backbone.w"])


def test_clients_of_a_kind_may_all_count_the_same() -> None:
    merged = LabelledShare(weights="equal").merge(CURRENT, updates(10, 0, 0), 1)
    assert merged["backbone.w"] == pytest.approx([3, 3])  # 1 and (3 + 7) / 2 = 5


def test_counters_take_the_largest_value_of_both_kinds_and_dtypes_stay() -> None:
    for labelled in ((10, 0, 0), (0, 0, 10)):
        merged = LabelledShare().merge(CURRENT, updates(*labelled), 1)
        assert merged["backbone.n"] == 7
        assert {name: array.dtype for name, array in merged.items()} == {
            name: array.dtype for name, array in CURRENT.items()
        }


def test_an_update_that_does_not_say_what_it_knows_is_refused() -> None:
    identify()
    silent = LocalUpdate(0, 1, CURRENT, 10, {})
    reply = Message(write_update(silent), reply_to=Message(RecordDict(), 1, MessageType.TRAIN))
    with pytest.raises(ValueError, match="metric num-labelled is missing"):
        read_sound(reply, 0, 1, CURRENT, LabelledShare().metrics, {})


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labelled_share must be between 0 and 1, got 1\.5"):
        LabelledShare(labelled_share=1.5)
