"""Server rules against values that can be computed by hand."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg, FedMedian

from fedssl.simulation.grid import identify
from fedssl.wire import LocalUpdate
from strategies.averaging import Averaging
from strategies.base import Plan
from strategies.fedvssl import FedVSSL
from strategies.flower import FlowerStrategy

PLAN = Plan(rounds=3, seed=0, num_clients=2, cohort=None, quorum=1)
CURRENT = {"backbone.w": np.array([0.0, 0.0], np.float32), "backbone.n": np.array(3, np.int64)}


def updates() -> Iterator[LocalUpdate]:
    for partition, (value, examples, loss, steps) in enumerate([(1.0, 10, 0.0, 5), (3.0, 30, np.log(3.0), 7)]):
        arrays = {"backbone.w": np.full(2, value, np.float32), "backbone.n": np.array(steps, np.int64)}
        yield LocalUpdate(partition, 1, arrays, examples, {"loss": float(loss)})


def test_fedavg_is_the_mean_weighted_by_examples() -> None:
    merged = Averaging().merge(CURRENT, updates(), 1)
    assert merged["backbone.w"] == pytest.approx([2.5, 2.5])  # (10*1 + 30*3) / 40


def test_fedvssl_with_alpha_0_and_beta_0_is_fedavg_of_the_backbone() -> None:
    merged = FedVSSL(alpha=0.0, beta=0).merge(CURRENT, updates(), 5)
    assert merged["backbone.w"] == pytest.approx([2.5, 2.5])


def test_fedvssl_with_alpha_1_weighs_by_softmax_of_minus_the_loss() -> None:
    merged = FedVSSL(alpha=1.0, beta=0).merge(CURRENT, updates(), 5)
    assert merged["backbone.w"] == pytest.approx([1.5, 1.5])  # weights 3/4 and 1/4


def test_the_softmax_mean_does_not_overflow_and_does_not_depend_on_which_loss_comes_first() -> None:
    def at(losses: tuple[float, float]) -> np.ndarray:
        rows = [
            LocalUpdate(i, 1, {"backbone.w": np.full(1, v, np.float64)}, 1, {"loss": loss})
            for i, (v, loss) in enumerate(zip((1.0, 3.0), losses, strict=True))
        ]
        return FedVSSL(alpha=1.0, beta=0).merge({}, iter(rows), 1)["backbone.w"]

    assert at((1e4, 1e4 + np.log(3.0))) == pytest.approx([1.5])
    assert at((1e4 + np.log(3.0), 1e4)) == pytest.approx([2.5])


def test_fedvssl_with_beta_1_halves_the_step_from_round_2_on() -> None:
    strategy = FedVSSL(alpha=0.0, beta=1)
    assert strategy.merge(CURRENT, updates(), 1)["backbone.w"] == pytest.approx([2.5, 2.5])
    assert strategy.merge(CURRENT, updates(), 2)["backbone.w"] == pytest.approx([1.25, 1.25])


@pytest.mark.parametrize(("alpha", "merged"), [(0.0, 1.5), (0.25, 1.75), (1.0, 2.5)])
def test_inverted_alpha_is_the_share_of_the_mean_by_examples(alpha: float, merged: float) -> None:
    strategy = FedVSSL(alpha, beta=0, reference_compat="inverted_alpha")
    assert strategy.merge(CURRENT, updates(), 5)["backbone.w"] == pytest.approx([merged, merged])


@pytest.mark.parametrize(("alpha", "factor"), [(1.0, 1.0), (0.9, 0.9), (0.5, 0.5), (0.0, 0.0)])
def test_concatenated_lists_leave_alpha_times_the_mean_by_examples_whatever_the_losses(
    alpha: float, factor: float
) -> None:
    strategy = FedVSSL(alpha, beta=0, reference_compat="concatenated")
    assert strategy.merge(CURRENT, updates(), 5)["backbone.w"] == pytest.approx([factor * 2.5] * 2)
    other = (replace(update, metrics={"loss": 7.0 * update.partition}) for update in updates())
    assert strategy.merge(CURRENT, other, 5)["backbone.w"] == pytest.approx([factor * 2.5] * 2)


def test_concatenated_lists_shrink_a_backbone_that_no_client_changes_by_alpha_a_round() -> None:
    strategy, current = FedVSSL(0.9, beta=0, reference_compat="concatenated"), {"backbone.w": np.ones(2)}
    for number in range(1, 6):
        same = (LocalUpdate(partition, number, current, 5, {"loss": 1.0}) for partition in range(2))
        current = strategy.merge(current, same, number)
    assert current["backbone.w"] == pytest.approx([0.9**5] * 2)
    half = FedVSSL(0.9, beta=1, reference_compat="concatenated")
    same = (LocalUpdate(partition, 2, current, 5, {"loss": 1.0}) for partition in range(2))
    assert half.merge(current, same, 2)["backbone.w"] == pytest.approx([0.95 * 0.9**5] * 2)


@pytest.mark.parametrize(
    "strategy",
    [Averaging(), FedVSSL(), FedVSSL(reference_compat="concatenated"), FedVSSL(reference_compat="inverted_alpha")],
)
def test_names_and_dtypes_never_change_and_counters_stay_integers(strategy: Averaging | FedVSSL) -> None:
    merged = strategy.merge(CURRENT, updates(), 2)
    assert {name: array.dtype for name, array in merged.items()} == {
        name: array.dtype for name, array in CURRENT.items()
    }
    assert merged["backbone.n"] == 7


def test_a_server_sgd_with_rate_1_is_fedavg_and_momentum_carries_the_last_step_on() -> None:
    def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0, momentum=0.5)

    strategy = Averaging(optimizer=sgd)
    strategy.buffers = frozenset({"backbone.n"})
    first = strategy.merge(CURRENT, updates(), 1)
    assert first["backbone.w"] == pytest.approx([2.5, 2.5])
    second = strategy.merge(first, updates(), 2)
    assert second["backbone.w"] == pytest.approx([3.75, 3.75])  # no new gradient, half the last step
    assert second["backbone.n"] == 7


@pytest.mark.parametrize(("alpha", "beta", "text"), [(1.5, 0, "alpha must be"), (0.5, 2, "beta must be 0 or 1")])
def test_values_out_of_range_are_refused(alpha: float, beta: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FedVSSL(alpha=alpha, beta=beta)


def test_an_unknown_defect_is_named() -> None:
    with pytest.raises(ValueError, match="reference_compat must be one of none, inverted_alpha, concatenated, got all"):
        FedVSSL(reference_compat="all")  # type: ignore[arg-type]


def test_flowers_own_fedavg_gives_our_mean_in_the_dtypes_that_came() -> None:
    strategy = FlowerStrategy(FedAvg(fraction_evaluate=0.0))
    identify()
    assert strategy.task(CURRENT, 1, PLAN).settings == {}
    merged = strategy.merge(CURRENT, updates(), 1)
    assert merged["backbone.w"] == pytest.approx([2.5, 2.5])
    assert merged["backbone.n"].dtype == np.int64


def test_flowers_median_takes_the_middle() -> None:
    strategy = FlowerStrategy(FedMedian(fraction_evaluate=0.0))
    identify()
    strategy.task(CURRENT, 1, PLAN)
    assert strategy.merge(CURRENT, updates(), 1)["backbone.w"] == pytest.approx([2.0, 2.0])
