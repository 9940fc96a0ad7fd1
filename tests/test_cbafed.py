"""CBAFed: thresholds, second classes, records and shares of classes, each of them by hand."""

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from quadratics import sgd
from shards import SURE, UNSURE, asked, goes_on_to_the_same_bits, reader, shard
from test_runs import TINY

from clients.cbafed import CLASSES, CBAFedTraining, balanced_targets, thresholds
from clients.local_training import LocalTraining, Outcome, Work
from fedssl.arrays import Arrays
from fedssl.models import bundle
from fedssl.objectives.objective import UNKNOWN
from fedssl.objectives.supervised import Supervised
from fedssl.training.loop import Examples
from fedssl.wire import LocalUpdate
from simulate import main
from strategies.base import Plan
from strategies.cbafed import CBAFed

OBJECTIVE = Supervised(labelled_only=False)
TRAINING = CBAFedTraining(sgd(0.1), batch_size=2)
EQUAL = np.full(3, 1 / 3)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Thresholds


def test_equal_classes_need_the_same_of_a_label_however_many_there_are() -> None:
    for number in (2, 10, 100):  # the scaled shares are 0.1 and do not spread
        torch.testing.assert_close(thresholds(row(*[1 / number] * number), 0.84, 0.95), row(*[0.94] * number))


def test_a_rare_class_needs_less_and_none_more_than_the_highest() -> None:
    # scaled shares 0.15, 0.09, 0.06 around 0.1
    spread = sqrt((0.05**2 + 0.01**2 + 0.04**2) / 2)
    found = thresholds(row(0.5, 0.3, 0.2), 0.84, 0.9)
    torch.testing.assert_close(found, row(0.9, 0.84 + 0.09 - spread, 0.84 + 0.06 - spread))


def test_what_is_unsure_joins_its_second_class_where_that_is_rare() -> None:
    # scaled shares 0.18, 0.105, 0.015 and so thresholds 0.937, 0.862, 0.772; only the last class is under 0.03
    said = torch.tensor(
        [
            [0.95, 0.03, 0.02],  # sure
            [0.90, 0.06, 0.04],  # unsure, and its second class is frequent
            [0.90, 0.04, 0.06],  # unsure, and its second class is rare
            [0.10, 0.10, 0.80],  # sure enough for a rare class
            [0.30, 0.00, 0.70],  # not sure enough for a rare class
        ]
    )
    found = balanced_targets(said, row(0.6, 0.35, 0.05), 0.84, 0.95, 0.03)
    assert found.weights.tolist() == [1, 0, 1, 1, 0]
    assert found.labels[found.weights > 0].tolist() == [0, 2, 2]


# The client


def train(
    examples: Examples, procedure: CBAFedTraining = TRAINING, shares: np.ndarray = EQUAL
) -> tuple[Outcome, Arrays]:
    model = reader(OBJECTIVE)
    outcome = procedure.train(Work(model, OBJECTIVE, examples, asked(model, OBJECTIVE, classes={"shares": shares}), 0))
    return outcome, bundle.arrays(model, None)


def counts(outcome: Outcome) -> list[int]:
    return outcome.sent[CLASSES]["counts"].tolist()


def test_accepted_examples_are_learned_from_counted_and_compared_with_the_truth() -> None:
    outcome, _ = train(shard([SURE, UNSURE, SURE], truth=[0, 1, 2]))
    assert (outcome.num_examples, counts(outcome)) == (2, [2, 0, 0])
    assert outcome.metrics["num-steps"] == 1
    assert outcome.metrics["pseudo-label coverage"] == pytest.approx(2 / 3)
    assert outcome.metrics["pseudo-label accuracy"] == pytest.approx(1 / 2)
    assert "accuracy" not in outcome.metrics


def test_the_servers_shares_decide_what_is_accepted() -> None:
    # UNSURE is class 1 with 0.58, and class 0, its second, is rare
    outcome, _ = train(shard([UNSURE]), shares=np.array([0.0, 0.5, 0.5]))
    assert (outcome.num_examples, counts(outcome)) == (1, [1, 0, 0])


def test_who_accepts_nothing_has_nothing_to_contribute_and_leaves_the_model_as_it_came() -> None:
    outcome, after = train(shard([UNSURE] * 3))
    assert (outcome.num_examples, counts(outcome)) == (0, [0, 0, 0])
    before = bundle.arrays(reader(OBJECTIVE), None)
    assert all(np.array_equal(array, before[name]) for name, array in after.items())


def test_known_labels_are_kept_beside_accepted_ones() -> None:
    outcome, _ = train(shard([SURE, UNSURE, UNSURE, SURE], labels=[2, UNKNOWN, 1, UNKNOWN]))
    assert (outcome.num_examples, counts(outcome)) == (3, [1, 1, 1])
    assert outcome.metrics["pseudo-label coverage"] == pytest.approx(1 / 2)


LABELLED = shard([SURE, UNSURE, (0.0, 0.0, 1.0)], labels=[1, 1, 2])


def test_a_client_that_knows_all_of_its_labels_counts_with_all_of_them() -> None:
    outcome, _ = train(LABELLED)
    assert (outcome.num_examples, counts(outcome)) == (None, [0, 2, 1])
    assert outcome.metrics["num-steps"] == 11 * 2
    assert "pseudo-label coverage" not in outcome.metrics


def after_epochs(epochs: int) -> Arrays:
    model = reader(OBJECTIVE)
    LocalTraining(sgd(0.1), epochs, 2).train(Work(model, OBJECTIVE, LABELLED, asked(model, OBJECTIVE), 0))
    return bundle.arrays(model, None)


def test_epochs_after_the_first_end_a_fifth_of_the_way_from_the_record() -> None:
    _, drawn_back = train(LABELLED, replace(TRAINING, labelled_epochs=4, residual_every=3))
    first, fourth = after_epochs(1), after_epochs(4)
    for name, array in drawn_back.items():
        np.testing.assert_allclose(array, 0.8 * first[name] + 0.2 * fourth[name], atol=1e-6)
    _, not_yet = train(LABELLED, replace(TRAINING, labelled_epochs=3, residual_every=3))
    assert all(np.array_equal(array, after_epochs(3)[name]) for name, array in not_yet.items())


def test_the_mixture_is_the_next_record() -> None:
    # a share of 1 leads all the way back each time, to the first epoch's model while that is what is recorded
    _, once = train(LABELLED, replace(TRAINING, labelled_epochs=2, residual_every=1, residual=1.0))
    _, thrice = train(LABELLED, replace(TRAINING, labelled_epochs=4, residual_every=1, residual=1.0))
    first = after_epochs(1)
    for name, array in first.items():
        np.testing.assert_allclose(once[name], array, atol=1e-6)
        np.testing.assert_allclose(thrice[name], array, atol=1e-6)


def test_without_a_residual_it_is_local_training() -> None:
    _, trained = train(LABELLED, replace(TRAINING, labelled_epochs=3, residual_every=1, residual=0.0))
    for name, array in after_epochs(3).items():
        np.testing.assert_allclose(trained[name], array, atol=1e-6)


def test_what_does_not_go_together_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = reader(OBJECTIVE)
    with pytest.raises(ValueError, match=r"client=cbafed needs objective=supervised objective\.labelled_only=false"):
        TRAINING.train(Work(model, Supervised(), LABELLED, asked(model, OBJECTIVE), 0))
    with pytest.raises(ValueError, match="client=cbafed needs strategy=cbafed: the server sent no shares"):
        TRAINING.train(Work(model, OBJECTIVE, LABELLED, asked(model, OBJECTIVE), 0))
    assert main([*TINY, "engine=local", "strategy=cbafed", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "strategy=cbafed needs an objective with a classifier" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("base", 1.5), ("residual", -1.0), ("rare", -0.1), ("labelled_epochs", 0), ("residual_every", 0)],
)
def test_a_bad_setting_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        replace(TRAINING, **{name: value})
    if name.startswith("residual"):
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
            CBAFed(**{name: value})


# The server

PLAN = Plan(rounds=20, seed=0, num_clients=2, cohort=None, quorum=1, labelled_rounds=2)


def update(client: int, value: float, number: int, own: list[int]) -> LocalUpdate:
    arrays = {"classifier.bias": np.full(3, value), "backbone.steps": np.array(int(value))}
    return LocalUpdate(client, 1, arrays, number, {}, {CLASSES: {"counts": np.array(own)}})


def shares(strategy: CBAFed, current: Arrays) -> list[float]:
    return strategy.task(current, 9, PLAN).extras[CLASSES]["shares"].tolist()


def test_shares_are_equal_at_first_then_those_of_the_last_counts_of_every_client() -> None:
    strategy, current = CBAFed(), {"classifier.bias": np.zeros(3), "backbone.steps": np.array(0)}
    assert shares(strategy, current) == pytest.approx([1 / 3] * 3)
    merged = strategy.merge(current, iter([update(0, 1.0, 1, [1, 0, 0]), update(1, 4.0, 2, [0, 2, 1])]), 1)
    assert merged["classifier.bias"] == pytest.approx([3.0] * 3)  # (1 * 1 + 2 * 4) / 3
    assert shares(strategy, current) == pytest.approx([1 / 4, 2 / 4, 1 / 4])
    strategy.merge(current, iter([update(0, 1.0, 5, [2, 0, 3])]), 2)
    assert shares(strategy, current) == pytest.approx([2 / 8, 2 / 8, 4 / 8])


def rounds(strategy: CBAFed, current: Arrays, first: int, last: int) -> list[float]:
    """Merge rounds in each of which the clients go one further than the model."""
    values = []
    for number in range(first, last + 1):
        strategy.task(current, number, PLAN)
        value = float(current["classifier.bias"][0]) + 1
        current = strategy.merge(current, iter([update(0, value, 1, [1, 0, number])]), number)
        values.append(float(current["classifier.bias"][0]))
    return values


def test_every_five_rounds_after_the_warm_up_the_model_goes_half_way_back_to_the_record() -> None:
    # the warm-up leads to 2, the record; after five rounds (2 + 7) / 2 = 4.5, and after ten (4.5 + 9.5) / 2 = 7
    start = {"classifier.bias": np.zeros(3), "backbone.steps": np.array(0)}
    expected = [1, 2, 3, 4, 5, 6, 4.5, 5.5, 6.5, 7.5, 8.5, 7.0, 8.0]
    assert rounds(CBAFed(), start, 1, 13) == pytest.approx(expected)


@pytest.mark.parametrize("last", [1, 2, 3, 6, 7])
def test_a_run_that_is_cut_in_two_goes_on_as_if_it_was_not(last: int) -> None:
    start = {"classifier.bias": np.zeros(3), "backbone.steps": np.array(0)}
    whole, first, second = CBAFed(), CBAFed(), CBAFed()
    values = rounds(whole, start, 1, 12)
    half = rounds(first, start, 1, last)
    reached = {"classifier.bias": np.full(3, half[-1]), "backbone.steps": np.array(0)}
    second.restore(first.state(), reached)
    assert half + rounds(second, reached, last + 1, 12) == values
    assert shares(second, reached) == shares(whole, reached)


def test_counters_are_not_mixed() -> None:
    strategy, current = CBAFed(residual_every=1), {"classifier.bias": np.zeros(3), "backbone.steps": np.array(0)}
    strategy.task(current, 3, PLAN)
    merged = strategy.merge(current, iter([update(0, 8.0, 1, [1, 1, 1])]), 3)
    assert (merged["classifier.bias"].tolist(), merged["backbone.steps"]) == ([4.0] * 3, 8)


def test_a_run_with_two_labelled_clients_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "objective=supervised", "objective.labelled_only=false", "client=cbafed", "strategy=cbafed",
        "client.labelled_epochs=2", "client.residual_every=1", "strategy.residual_every=1", "client.base=0.4",
        "labels=partial_client", "labels.num_labelled=2", "labelled_rounds=1", "cohort=null",
    ]  # fmt: skip
    goes_on_to_the_same_bits(words, tmp_path, monkeypatch)
    records = [json.loads(line) for line in (tmp_path / "whole" / "rounds.jsonl").read_text().splitlines()]
    assert [len(record["clients"]) for record in records] == [2, 4, 4]
    assert records[1]["metrics"]["pseudo-label coverage"] > 0
