"""The server's mean of each class: by hand, over rounds, and cut in two."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from fedssl.arrays import Arrays
from fedssl.simulation.grid import identify
from fedssl.wire import LocalUpdate, write_update
from strategies.averaging import Averaging
from strategies.base import Plan
from strategies.class_means import ClassMeans
from strategies.replies import read_sound

PLAN = Plan(rounds=3, seed=0, num_clients=2, cohort=None, quorum=1)
CURRENT = {"backbone.w": np.array([1.0, 2.0], np.float32), "classifier.weight": np.zeros((3, 2), np.float32)}
"""Three classes, features of two numbers."""
Classes = Mapping[str, np.ndarray]


def classes(sums: list[list[float]], counts: list[float]) -> Classes:
    return {"sums": np.array(sums, np.float32), "counts": np.array(counts, np.float32)}


FIRST = classes([[2, 4], [0, 0], [3, 0]], [2, 0, 1])
SECOND = classes([[4, 2], [0, 0], [0, 0]], [1, 0, 0])


def update(extras: Classes, partition: int = 0, value: float = 1.0) -> LocalUpdate:
    arrays = {name: np.full_like(array, value) for name, array in CURRENT.items()}
    return LocalUpdate(partition, 1, arrays, 10 * (1 + 2 * partition), {}, {"classes": extras})


def known(strategy: ClassMeans, current: Arrays = CURRENT) -> Classes:
    return strategy.task(current, 1, PLAN).extras["classes"]


def test_before_anything_was_counted_means_are_zeros_of_which_nothing_is_known() -> None:
    sent = known(ClassMeans())
    assert sent["means"].tolist() == [[0, 0]] * 3
    assert sent["counts"].tolist() == [0, 0, 0]
    assert sent["means"].dtype == sent["counts"].dtype == np.float32


def test_a_mean_is_the_sum_of_sums_over_the_sum_of_counts_and_the_model_is_that_of_averaging() -> None:
    strategy = ClassMeans()
    updates = [update(FIRST, 0, 1.0), update(SECOND, 1, 3.0)]
    merged = strategy.merge(CURRENT, iter(updates), 1)
    assert known(strategy)["means"].tolist() == [[2, 2], [0, 0], [3, 0]]  # (2 + 4) / 3, (4 + 2) / 3
    assert known(strategy)["counts"].tolist() == [3, 0, 1]
    expected = Averaging().merge(CURRENT, iter(updates), 1)
    assert merged["backbone.w"].tolist() == expected["backbone.w"].tolist() == [2.5, 2.5]  # (10 * 1 + 30 * 3) / 40


def test_a_class_that_nobody_of_a_round_counted_keeps_what_it_had() -> None:
    strategy = ClassMeans()
    strategy.merge(CURRENT, iter([update(FIRST)]), 1)
    strategy.merge(CURRENT, iter([update(classes([[0, 0], [8, 4], [0, 0]], [0, 4, 0]))]), 2)
    assert known(strategy)["means"].tolist() == [[1, 2], [2, 1], [3, 0]]
    assert known(strategy)["counts"].tolist() == [2, 4, 1]


def test_means_are_those_of_a_slow_loop_whoever_comes_first_to_single_precision() -> None:
    rng = np.random.default_rng(0)
    brought = [classes(rng.standard_normal((3, 2)).tolist(), rng.integers(1, 9, 3).tolist()) for _ in range(5)]
    expected = [
        [sum(float(c["sums"][k, d]) for c in brought) / sum(float(c["counts"][k]) for c in brought) for d in range(2)]
        for k in range(3)
    ]
    for order in (brought, brought[::-1]):
        strategy = ClassMeans()
        strategy.merge(CURRENT, iter([update(each) for each in order]), 1)
        np.testing.assert_allclose(known(strategy)["means"], expected, rtol=1e-6)


def test_equal_clients_with_equal_counts_are_each_of_them() -> None:
    strategy = ClassMeans()
    strategy.merge(CURRENT, iter([update(FIRST, 0), update(FIRST, 1)]), 1)
    assert known(strategy)["means"].tolist() == [[1, 2], [0, 0], [3, 0]]


def test_a_vector_may_be_as_wide_as_there_are_classes() -> None:
    strategy = ClassMeans(width="classes")
    assert known(strategy)["means"].shape == (3, 3)
    assert strategy.extras(CURRENT)["classes"]["sums"].shape == (3, 3)


def test_what_was_sent_is_not_changed_by_a_later_round() -> None:
    strategy = ClassMeans()
    sent = known(strategy)
    strategy.merge(CURRENT, iter([update(FIRST)]), 1)
    assert sent["means"].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_run_that_is_cut_in_two_goes_on_to_the_same_bits(momentum: float) -> None:
    def make() -> ClassMeans:
        return ClassMeans(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=momentum))

    rng = np.random.default_rng(0)
    rounds = [
        [update(classes(rng.standard_normal((3, 2)).tolist(), [0, k, 3]), k, float(rng.standard_normal()))
         for k in range(2)]
        for _ in range(4)
    ]  # fmt: skip
    whole, cut, one, other = make(), make(), CURRENT, CURRENT
    for number, brought in enumerate(rounds, 1):
        if number == 3:
            state, cut = cut.state(), make()
            cut.restore(state, other)
        for name in ("means", "counts"):
            assert np.array_equal(known(whole, one)[name], known(cut, other)[name])
        one, other = whole.merge(one, iter(brought), number), cut.merge(other, iter(brought), number)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert np.array_equal(known(whole)["means"], known(cut)["means"])


def test_nothing_is_restored_where_nothing_was_kept() -> None:
    strategy = ClassMeans()
    strategy.restore(ClassMeans().state(), CURRENT)
    assert known(strategy)["counts"].tolist() == [0, 0, 0]


def test_what_does_not_fit_is_refused_by_name() -> None:
    identify()
    asked = Message(RecordDict(), 1, "train")

    def reason(extras: Mapping[str, Classes]) -> str:
        made = LocalUpdate(0, 1, CURRENT, 4, {}, extras)
        with pytest.raises(ValueError, match=r"classes|sums|counts") as caught:
            read_sound(Message(write_update(made), reply_to=asked), 0, 1, CURRENT, (), ClassMeans().extras(CURRENT))
        return str(caught.value)

    assert reason({}) == "classes is missing: does the client procedure go with the strategy?"
    assert reason({"classes": {"counts": FIRST["counts"]}}) == "classes: sums is missing"
    wide = classes([[0, 0, 0]] * 3, [0, 0, 0])
    assert reason({"classes": wide}) == "classes: sums is float32(3, 3), not float32(3, 2)"
    assert "sums holds values that are not finite" in reason({"classes": {**FIRST, "sums": FIRST["sums"] * np.nan}})
    with pytest.raises(ValueError, match="share must be null or name the classifier of an objective, got "):
        ClassMeans(share=["backbone"]).task({"backbone.w": CURRENT["backbone.w"]}, 1, PLAN)
    with pytest.raises(ValueError, match="width must be one of features, classes, got both"):
        ClassMeans(width="both")  # type: ignore[arg-type]
