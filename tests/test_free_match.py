from math import exp, log

import pytest
import torch
from torch import Tensor, nn

from fedssl.models.encoder import Encoder
from fedssl.objectives.free_match import Confidence, FreeMatch, fairness, normalised_by
from fedssl.objectives.objective import Population
from fedssl.objectives.pseudo_labels import Seen, Targets


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seen(logits: Tensor) -> Seen:
    return Seen(torch.zeros(len(logits), 1, 1, 1, 1), logits, logits, torch.arange(len(logits)))


def fresh(rule: FreeMatch, num_classes: int = 4) -> Confidence:
    """Return what the rule keeps, in double precision."""
    state = rule.build(Encoder(nn.Identity(), 3), Population(8, num_classes)).double()
    state.clear()
    return state


def uniform(classes: int) -> Tensor:
    return torch.full((classes,), 1 / classes, dtype=torch.float64)


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_the_first_threshold_of_every_class_is_one_over_the_classes(classes: int) -> None:
    rule = FreeMatch()
    state = fresh(rule, classes)
    assert rule.thresholds(state).tolist() == pytest.approx([1 / classes] * classes, abs=1e-12)
    assert (rule.targets(state, seen(noise(6, classes))).weights == 1).all()


def test_the_running_means_move_by_what_their_momentum_leaves() -> None:
    rule = FreeMatch(momentum=0.9)
    state = fresh(rule)
    sure = torch.tensor([[1000.0, 0, 0, 0]] * 2 + [[0, 1000.0, 0, 0]] * 2, dtype=torch.float64)
    for _ in range(3):
        rule.targets(state, seen(sure))
    kept = 0.9**3
    assert state.highest.item() == pytest.approx(1 - 0.75 * kept, abs=1e-9)
    half = 0.5 - 0.25 * kept
    assert state.mean.tolist() == pytest.approx([half, half, 0.25 * kept, 0.25 * kept], abs=1e-9)
    assert state.histogram.tolist() == pytest.approx(state.mean.tolist(), abs=1e-9)
    expected = [1 - 0.75 * kept] * 2 + [(1 - 0.75 * kept) * 0.25 * kept / half] * 2
    assert rule.thresholds(state).tolist() == pytest.approx(expected, abs=1e-9)


def test_many_steps_are_those_of_a_slow_loop() -> None:
    rule = FreeMatch(momentum=0.8)
    state = fresh(rule, 3)
    highest, mean, histogram = 1 / 3, [1 / 3] * 3, [1 / 3] * 3
    for seed in range(12):
        logits = 2 * noise(5, 3, seed=seed) + torch.tensor([1.0, 0, 0])
        rows = logits.softmax(dim=1).tolist()
        expected = [max(row) >= highest * mean[row.index(max(row))] / max(mean) for row in rows]
        assert (rule.targets(state, seen(logits)).weights > 0).tolist() == expected
        highest = 0.8 * highest + 0.2 * sum(max(row) for row in rows) / 5
        guesses = [row.index(max(row)) for row in rows]
        mean = [0.8 * mean[k] + 0.2 * sum(row[k] for row in rows) / 5 for k in range(3)]
        histogram = [0.8 * histogram[k] + 0.2 * guesses.count(k) / 5 for k in range(3)]
    assert not all(expected)
    assert state.mean.tolist() == pytest.approx(mean, abs=1e-9)
    assert state.histogram.tolist() == pytest.approx(histogram, abs=1e-9)


def test_thresholds_are_clamped_for_each_class() -> None:
    rule = FreeMatch(clamp=[0.9, 0.95])
    state = fresh(rule)
    assert rule.thresholds(state).tolist() == pytest.approx([0.9] * 4)
    state.highest.fill_(0.99)
    state.mean.copy_(torch.tensor([0.4, 0.37, 0.1, 0.13]))
    assert rule.thresholds(state).tolist() == pytest.approx([0.95, 0.99 * 0.37 / 0.4, 0.9, 0.9])


def coverage(rule: FreeMatch, rounds: int, steps: int) -> float:
    """Return the share that is accepted in the last round, of examples of 0.9999 and of 0.47."""
    state, batch = fresh(rule), seen(torch.tensor([[10.0, 0, 0, 0], [1.0, 0, 0, 0]] * 2).double())
    for number in range(rounds):
        rule.begin_round(state, first=number == 0)
        shares = [rule.targets(state, batch).weights.mean().item() for _ in range(steps)]
    return sum(shares) / steps


def test_means_that_begin_anew_in_every_round_accept_every_pseudo_label() -> None:
    assert coverage(FreeMatch(reset=True), rounds=20, steps=40) == 1
    assert coverage(FreeMatch(reset=False), rounds=20, steps=40) == 0.5


@pytest.mark.parametrize("classes", [2, 10])
def test_uniform_distributions_have_a_fairness_of_minus_the_log_of_the_classes(classes: int) -> None:
    one_each = torch.eye(classes, dtype=torch.float64)
    assert fairness(one_each, uniform(classes)).item() == pytest.approx(-log(classes), abs=1e-9)
    state = fresh(FreeMatch(), classes)
    assert normalised_by(state.mean, state.histogram).tolist() == pytest.approx([1 / classes] * classes)


def test_no_accepted_example_has_no_fairness_and_a_gradient_of_zeros() -> None:
    rule, logits = FreeMatch(fairness_weight=1.0), noise(3, 4).requires_grad_()
    value = rule.regularise(fresh(rule), logits, Targets(torch.zeros(3, dtype=torch.int64), torch.zeros(3)))
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_fairness_is_that_of_a_slow_loop_and_has_its_gradient(seed: int) -> None:
    rule = FreeMatch(fairness_weight=0.3)
    state, logits = fresh(rule), noise(6, 4, seed=seed)
    state.mean.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    state.histogram.copy_(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64))
    targets = Targets(torch.zeros(6, dtype=torch.int64), torch.tensor([1.0, 0, 1, 1, 0.5, 1]))
    rows = [row for row, weight in zip(logits.tolist(), targets.weights.tolist(), strict=True) if weight]
    guesses = [row.index(max(row)) for row in rows]
    scaled = [0.1 / 0.4, 0.2 / 0.3, 0.3 / 0.2, 0.4 / 0.1]
    batch = [0.0] * 4
    for k in set(guesses):
        batch[k] = sum(exp(row[k]) / sum(exp(each) for each in row) for row in rows) / 5 / (guesses.count(k) / 5)
    value = sum(scaled[k] / sum(scaled) * log(batch[k] / sum(batch)) for k in set(guesses))
    assert rule.regularise(state, logits, targets).item() == pytest.approx(0.3 * value, abs=1e-9)
    assert torch.autograd.gradcheck(lambda given: rule.regularise(state, given, targets), logits.requires_grad_())


def test_the_published_sign_takes_a_batch_away_from_what_is_expected() -> None:
    logits = torch.tensor([[1.0, 0], [0, 0.5]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(fairness(logits, uniform(2)), logits)
    apart = []
    for step in (-0.1, 0, 0.1):  # up the value, nowhere, and down
        first, second = (logits - step * slope).softmax(dim=1).mean(dim=0).tolist()
        apart.append(abs(first - second))
    assert apart[0] < apart[1] < apart[2]


def test_a_class_of_no_probability_has_a_finite_gradient() -> None:
    logits = torch.tensor([[2000.0, 0, 0], [0, 2000, 0]], dtype=torch.float64, requires_grad=True)
    value = fairness(logits, uniform(3))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_the_fairness_couples_a_batch_and_without_it_earlier_batches_alone_count() -> None:
    assert FreeMatch(fairness_weight=0.01).coupling == "batch"
    assert FreeMatch(fairness_weight=0.0).coupling == "global_state"
    weights = FreeMatch(fairness_weight=0.0)
    assert weights.regularise(fresh(weights), noise(2, 4), Targets(torch.zeros(2).long(), torch.ones(2))).item() == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("momentum", 1.1), ("fairness_weight", 2), ("clamp", [0.9]), ("clamp", [0.95, 0.9]), ("clamp", [0.9, 1.1])],
)
def test_arguments_out_of_range_are_named(name: str, value: float | list[float]) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        FreeMatch(**{name: value})
