"""PRG: probabilities rectified by transitions between classes, and the bank that counts them."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fedssl.compose import load
from fedssl.config import build
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import UNKNOWN, Population
from fedssl.objectives.prg import Prg, Transitions, rectified
from fedssl.objectives.pseudo_labels import Seen

CLASSES = 4
ENCODER = Encoder(nn.Identity(), 3)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seen(labels: list[int], places: list[int] | None = None, sharpness: float = 2.0) -> Seen:
    """Return examples whose likeliest classes are the labels."""
    logits = sharpness * torch.eye(CLASSES, dtype=torch.float64)[labels]
    where = torch.tensor(list(range(len(labels))) if places is None else places)
    return Seen(torch.zeros(len(labels), 1, 1, 1, 1), torch.zeros(len(labels), 3), logits, where)


def state(rule: Prg, num_examples: int = 8) -> Transitions:
    kept = rule.build(ENCODER, Population(num_examples, CLASSES))
    assert isinstance(kept, Transitions)
    return kept.double()


def some_changes(seed: int = 0) -> Tensor:
    changes = torch.randint(0, 5, (CLASSES, CLASSES), generator=torch.Generator().manual_seed(seed)).double()
    return changes.fill_diagonal_(0)


def test_uniform_transitions_and_predictions_leave_probabilities_as_they_are() -> None:
    p = drawn(5, CLASSES).softmax(dim=1)
    changes = torch.full((CLASSES, CLASSES), 7.0).fill_diagonal_(0)
    for rows in (p.argmax(dim=1), torch.tensor([3, 0, 1, 2, 2])):
        torch.testing.assert_close(rectified(p, rows, changes, torch.full((CLASSES,), 0.3), 1.0), p, atol=1e-9, rtol=0)


@pytest.mark.parametrize("previous", [False, True])
def test_without_transitions_the_row_alone_is_left(previous: bool) -> None:
    rule = Prg(previous=previous, gate=False)
    kept = state(rule)
    rule.targets(kept, seen([2, 0, 1]))
    targets = rule.targets(kept, seen([2, 0, 1], sharpness=0.1))
    assert targets.labels.tolist() == [2, 0, 1]
    assert targets.weights.tolist() == [1, 1, 1]  # one-hot, however unsure


def test_without_transitions_the_gate_leaves_what_a_fixed_threshold_accepts() -> None:
    for previous in (False, True):
        rule = Prg(threshold=0.5, previous=previous)
        kept = state(rule)
        for sharpness, weight in ((3.0, 1), (0.5, 0)):  # e^3 / (e^3 + 3) is above 1/2, e^(1/2) / (e^(1/2) + 3) below
            assert rule.targets(kept, seen([2, 0], sharpness=sharpness)).weights.tolist() == [weight, weight]


def test_a_row_of_two_classes_is_rectified_by_hand() -> None:
    p = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    changes = torch.tensor([[0.0, 3.0], [0.0, 0.0]])
    # row 0 is (1/2, 1), divided by shares (3/4, 1/4): (2/3, 4); times p: (2/5, 8/5)
    rows = rectified(p, torch.tensor([0]), changes, torch.tensor([3.0, 1.0]), alpha=0.5)
    torch.testing.assert_close(rows, torch.tensor([[0.2, 0.8]], dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_rectified_probabilities_are_those_of_a_slow_loop(alpha: float) -> None:
    p, changes, predicted = drawn(6, CLASSES).softmax(dim=1), some_changes(), drawn(CLASSES, seed=1).softmax(dim=0)
    rows = torch.tensor([0, 1, 2, 3, 3, 1])
    expected = []
    for k, row in enumerate(rows.tolist()):
        values = []
        for column in range(CLASSES):
            share = changes[row, column].item() / changes[row].sum().item()
            share += alpha / (CLASSES - 1) if row == column else 0.0
            values.append(p[k, column].item() * share / predicted[column].item())
        expected.append([value / sum(values) for value in values])
    found = rectified(p, rows, changes, 5 * predicted, alpha)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_row_of_which_nothing_is_left_stays_as_it_is() -> None:
    p = torch.tensor([[0.0, 1.0]])
    none = torch.zeros(2, 2)
    assert rectified(p, torch.tensor([0]), none, torch.tensor([1.0, 0.0]), 1.0).tolist() == [[0, 1]]
    assert rectified(p, torch.tensor([1]), none, torch.zeros(2), 1.0).tolist() == [[0, 1]]


def test_the_bank_counts_the_changes_of_a_batch_and_forgets_the_oldest_batch() -> None:
    kept = Transitions(8, CLASSES, num_batches=3).double()
    history = [[0, 1, 2, 3], [1, 1, 2, 0], [1, 2, 2, 0], [2, 2, 2, 0], [2, 2, 2, 1]]
    for labels in history:
        kept.write(torch.tensor([7, 0, 3, 5]), seen(labels).probabilities)
    expected = torch.zeros(CLASSES, CLASSES)
    for before, after in pairwise(history[1:]):  # those of the last three batches
        for one, other in zip(before, after, strict=True):
            expected[one, other] += one != other
    assert torch.equal(kept.changes.sum(dim=0), expected.double())
    assert kept.last.tolist() == [2, UNKNOWN, UNKNOWN, 2, UNKNOWN, 1, UNKNOWN, 2]
    means = torch.stack([seen(labels).probabilities.mean(dim=0) for labels in history[2:]])
    torch.testing.assert_close(kept.predicted.sum(dim=0), means.sum(dim=0))


def test_the_changes_of_a_batch_count_at_once_and_those_of_prg_last_afterwards() -> None:
    first, second = seen([0, 0, 1]), seen([1, 0, 1])
    at_once, afterwards = Prg(threshold=0.0), Prg(threshold=0.0, alpha=3.0, previous=True)
    for rule in (at_once, afterwards):
        kept = state(rule)
        rule.targets(kept, first)
        targets = rule.targets(kept, second)
        assert kept.changes.sum(dim=0)[0, 1] == 1  # one example went from 0 to 1
        p, predicted = second.probabilities, (first.probabilities.mean(dim=0) + second.probabilities.mean(dim=0))
        if rule is at_once:  # class 0 was left: its row is rectified
            p[1:2] = rectified(p[1:2], torch.tensor([0]), kept.changes.sum(dim=0), predicted, 1.0)
        assert torch.equal(targets.labels, p.argmax(dim=1))


def test_an_unseen_example_of_prg_last_keeps_its_probabilities() -> None:
    rule = Prg(threshold=0.0, previous=True, gate=False)
    kept = state(rule)
    rule.targets(kept, seen([0, 1], places=[0, 1]))
    targets = rule.targets(kept, seen([3, 3], places=[0, 2]))
    assert targets.labels.tolist() == [0, 3]  # the first has the row of 0 alone, the other has none


def test_targets_change_nothing_of_what_they_are_made_from_and_carry_no_graph() -> None:
    rule = Prg()
    logits = drawn(3, CLASSES).requires_grad_()
    examples = replace(seen([0, 1, 2]), logits=logits)
    before = logits.detach().clone()
    targets = rule.targets(state(rule), examples)
    assert torch.equal(logits.detach(), before)
    assert not targets.weights.requires_grad


def test_a_client_goes_on_from_what_it_remembers() -> None:
    rule = Prg(threshold=0.3)
    batches = [Seen(torch.zeros(6, 1), torch.zeros(6, 3), drawn(6, CLASSES, seed=k), torch.arange(6)) for k in range(6)]
    whole, cut = state(rule), state(rule)
    expected = [rule.targets(whole, batch) for batch in batches]
    found = [rule.targets(cut, batch) for batch in batches[:3]]
    again = state(rule)
    again.load_state_dict(cut.state_dict())
    found += [rule.targets(again, batch) for batch in batches[3:]]
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.weights, other.weights)


@pytest.mark.parametrize(("name", "value"), [("threshold", 1.5), ("alpha", 0.0), ("num_batches", 0)])
def test_a_bad_setting_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        Prg(**{name: value})


def test_the_configuration_is_fixmatch_with_this_rule() -> None:
    objective = build(load("objective=prg"), "objective")
    assert isinstance(objective.rule, Prg)
    assert objective.contract.private_groups == {"rule"}
