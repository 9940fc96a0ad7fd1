import pytest
import torch
from torch import Tensor, nn

from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Population
from fedssl.objectives.pseudo_labels import Rule, Seen, Targets
from fedssl.objectives.threshold_rules import FixedThreshold, FlexMatch, LastConfident


def seen(probabilities: Tensor, places: list[int] | None = None) -> Seen:
    number = len(probabilities)
    at = torch.arange(number) if places is None else torch.tensor(places)
    return Seen(torch.zeros(number, 1, 1, 1, 1), probabilities, probabilities.log(), at)


def certain(label: int, probability: float, classes: int = 3) -> list[float]:
    """Return probabilities of which one is given, and the others share the rest."""
    rest = (1 - probability) / (classes - 1)
    return [probability if k == label else rest for k in range(classes)]


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def state_of(rule: Rule, num_examples: int = 8, num_classes: int = 3) -> nn.Module:
    return rule.build(Encoder(nn.Identity(), 3), Population(num_examples, num_classes))


def accepted(targets: Targets) -> list[bool]:
    return (targets.weights > 0).tolist()


def test_a_fixed_threshold_accepts_what_reaches_it() -> None:
    batch = seen(rows(certain(0, 0.9501), certain(1, 0.99), certain(2, 0.9499)))
    targets = FixedThreshold(0.95).targets(None, batch)
    assert (targets.labels.tolist(), accepted(targets)) == ([0, 1, 2], [True, True, False])
    assert state_of(FixedThreshold()) is None


@pytest.mark.parametrize(
    ("counts", "unused", "warmup", "expected"),
    [
        ([8, 4, 0], 0, True, [0.9, 0.3, 0.0]),  # shares 1, 1/2 and 0: the threshold, a third of it, and nothing
        ([8, 4, 0], 5, True, [0.9, 0.3, 0.0]),
        ([8, 4, 0], 16, True, [0.3, 0.9 / 7, 0.0]),
        ([8, 4, 0], 16, False, [0.9, 0.3, 0.0]),
        ([0, 0, 0], 16, True, [0.0, 0.0, 0.0]),
        ([0, 0, 0], 0, False, [0.0, 0.0, 0.0]),
        ([5, 5, 5], 0, True, [0.9, 0.9, 0.9]),
    ],
)
def test_the_threshold_of_a_class_is_that_of_its_share(
    counts: list[int], unused: int, warmup: bool, expected: list[float]
) -> None:
    thresholds = FlexMatch(0.9, warmup).thresholds(torch.tensor(counts), torch.tensor(unused))
    assert thresholds.tolist() == pytest.approx(expected, abs=1e-9)


def test_at_first_everything_passes() -> None:
    rule = FlexMatch()
    targets = rule.targets(state_of(rule), seen(torch.full((4, 3), 1 / 3, dtype=torch.float64)))
    assert accepted(targets) == [True] * 4


def test_classes_that_are_learned_alike_have_the_threshold_of_fixmatch() -> None:
    rule = FlexMatch(0.95)
    state = state_of(rule)
    rule.targets(state, seen(rows(certain(0, 0.99), certain(1, 0.99), certain(2, 0.99))))
    batch = seen(rows(certain(0, 0.96), certain(1, 0.94), certain(2, 0.5)), [3, 4, 5])
    assert accepted(rule.targets(state, batch)) == accepted(FixedThreshold(0.95).targets(None, batch))


def test_a_class_that_is_learned_slowly_has_a_lower_threshold() -> None:
    rule = FlexMatch(0.9)
    state = state_of(rule)
    rule.targets(state, seen(rows(certain(0, 0.99), certain(0, 0.99), certain(1, 0.99))))
    batch = seen(rows(certain(0, 0.89), certain(1, 0.46), certain(2, 0.34)), [3, 4, 5])  # 0.9, 0.3 and 0 are asked
    assert accepted(rule.targets(state, batch)) == [False, True, True]


def test_examples_that_were_never_confident_hold_thresholds_down() -> None:
    batch = seen(rows(certain(0, 0.99), *[certain(1, 0.4)] * 5))
    asked = []
    for warmup in (True, False):
        rule = FlexMatch(0.9, warmup)
        state = state_of(rule)
        rule.targets(state, batch)
        asked.append(rule.thresholds(*state.counts(3)).tolist())
    assert asked[0] == pytest.approx([0.9 * 0.2 / 1.8, 0, 0], abs=1e-9)
    assert asked[1] == pytest.approx([0.9, 0, 0], abs=1e-9)


def test_the_last_confident_label_stays_until_another_is() -> None:
    rule = FlexMatch(0.9)
    state = state_of(rule, num_examples=4)
    rule.targets(state, seen(rows(certain(0, 0.99), certain(1, 0.5)), [2, 0]))
    rule.targets(state, seen(rows(certain(1, 0.5)), [2]))
    assert state.labels.tolist() == [-1, -2, 0, -2]
    rule.targets(state, seen(rows(certain(1, 0.95)), [2]))
    assert state.labels.tolist() == [-1, -2, 1, -2]
    counts, unused = state.counts(3)
    assert (counts.tolist(), unused.item()) == ([0, 1, 0], 1)


def test_examples_of_larger_clients_are_not_counted() -> None:
    rule = FlexMatch(0.9)
    batch = seen(rows(certain(0, 0.99), certain(1, 0.5)))
    thresholds = []
    for size in (2, 1000):
        state = state_of(rule, size)
        rule.targets(state, batch)
        thresholds.append(rule.thresholds(*state.counts(3)).tolist())
    assert thresholds[0] == thresholds[1] == pytest.approx([0.9, 0, 0])


def test_many_steps_are_those_of_a_slow_loop() -> None:
    rule, generator = FlexMatch(0.7), torch.Generator().manual_seed(0)
    state, last, passed = state_of(rule, 12), {}, []
    for _ in range(20):
        probabilities = (2 * torch.randn(5, 3, dtype=torch.float64, generator=generator)).softmax(dim=1)
        places = torch.randperm(12, generator=generator)[:5].tolist()
        known = [label for label in last.values() if label is not None]
        most = max([known.count(k) for k in range(3)] + [len(last) - len(known), 1])
        expected = []
        for row in probabilities.tolist():
            label = row.index(max(row))
            share = known.count(label) / most
            expected.append(max(row) >= 0.7 * share / (2 - share))
        assert accepted(rule.targets(state, seen(probabilities, places))) == expected
        passed += expected
        for row, place in zip(probabilities.tolist(), places, strict=True):
            last[place] = row.index(max(row)) if max(row) >= 0.7 else last.get(place)
    assert 10 < sum(passed) < 90


def test_a_server_without_examples_has_the_least_memory() -> None:
    assert LastConfident(0).labels.tolist() == [-2]
    assert (FlexMatch.coupling, FixedThreshold.coupling) == ("global_state", "per_example")


@pytest.mark.parametrize("rule", [FixedThreshold, FlexMatch])
@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_thresholds_out_of_range_are_named(rule: type[FixedThreshold] | type[FlexMatch], threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
        rule(threshold)
