"""SemiReward: what a label is worth, who learns it when, and which labels are dropped."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.compose import load
from fedssl.config import build
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Population
from fedssl.objectives.prg import Prg
from fedssl.objectives.pseudo_labels import Rule, Seen, Targets, confident
from fedssl.objectives.rewarder import Rewarder, Trained, make_generator
from fedssl.objectives.semi_reward import Rewards, SemiReward, not_below_mean, worth

CLASSES, WIDTH = 3, 5
ENCODER = Encoder(nn.Identity(), WIDTH)


class Host(Rule):
    """Accepts the likeliest class from 1/2 on."""

    def targets(self, state: nn.Module | None, unlabelled: Seen) -> Targets:
        return confident(unlabelled.probabilities, 0.5)

    def regularise(self, state: nn.Module | None, strong_logits: Tensor, targets: Targets) -> Tensor:
        return targets.weights.sum()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seen(number: int = 6, seed: int = 0) -> Seen:
    logits = 3 * drawn(number, CLASSES, seed=seed)
    return Seen(torch.zeros(number, 1), drawn(number, WIDTH, seed=seed + 100), logits, torch.arange(number))


def made(rule: SemiReward, seed: int = 0) -> Rewards:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kept = rule.build(ENCODER, Population(6, CLASSES))
    assert isinstance(kept, Rewards)
    return kept.double()


def one_hot(*labels: int) -> Tensor:
    return torch.eye(CLASSES, dtype=torch.float64)[list(labels)]


def taught(rule: SemiReward, rounds: int = 2) -> Rewards:
    """Return what a client keeps that learned from labels in the first part, and is past it."""
    kept = made(rule)
    rule.begin_round(kept, first=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(rounds):
            rule.learn(kept, seen(), torch.tensor([0, 1, 2, 0, 1, 2]))
            rule.after_step(kept, 0.05)
    rule.after_step(kept, 0.5)
    return kept


def arrays(kept: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in kept.state_dict().items()}


def test_a_right_label_is_worth_one_and_a_wrong_one_half() -> None:
    found = worth(one_hot(0, 1, 2, 2), one_hot(0, 2, 2, 1))
    assert found.tolist() == [1, 0.5, 1, 0.5]
    expected = (1 + F.cosine_similarity(one_hot(0, 1, 2, 2), one_hot(0, 2, 2, 1))) / 2
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_equal_rewards_filter_nothing_whatever_they_are_and_others_the_lower_ones() -> None:
    for value in (0.1, 1 / 3, 0.7, 1.0):
        for number in (1, 3, 7, 49):
            assert not_below_mean(torch.full((number,), value)).all()
            assert not_below_mean(torch.full((number,), value, dtype=torch.float64)).all()
    assert not_below_mean(torch.tensor([0.2, 0.4, 0.9])).tolist() == [False, False, True]


def test_the_reward_of_a_sample_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    rewarder = Rewarder(WIDTH, CLASSES).double()
    features, labels = drawn(4, WIDTH), one_hot(0, 1, 2, 1)
    alone = torch.cat([rewarder(features[k : k + 1], labels[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(rewarder(features, labels), alone, atol=1e-9, rtol=0)
    assert ((alone > 0) & (alone < 1)).all()


def test_the_rewarder_is_a_slow_loop_over_samples() -> None:
    torch.manual_seed(1)
    rewarder = Rewarder(WIDTH, CLASSES).double()
    features, classes = drawn(3, WIDTH), [2, 0, 1]

    def normalised(row: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = row - row.mean()
        return norm.weight * centred / (centred.square().mean() + norm.eps).sqrt() + norm.bias

    for k, label in enumerate(classes):
        feature = normalised(rewarder.feature[0].weight @ features[k] + rewarder.feature[0].bias, rewarder.feature[1])
        embedded = normalised(rewarder.label[0].weight[:, label], rewarder.label[1])
        scores = [(rewarder.attention.weight[0] @ token + rewarder.attention.bias[0]).item()
                  for token in (feature, embedded)]  # fmt: skip
        share = 1 / (1 + math.exp(scores[1] - scores[0]))
        hidden = share * feature + (1 - share) * embedded
        for first, _, second in (rewarder.mlp, rewarder.answer):
            hidden = second.weight @ (first.weight @ hidden + first.bias).clamp(min=0) + second.bias
        expected = 1 / (1 + math.exp(-hidden.item()))
        found = rewarder(features[k : k + 1], one_hot(label))
        assert found.item() == pytest.approx(expected, abs=1e-9)


def test_the_rewarder_passes_gradients_to_features_and_labels() -> None:
    torch.manual_seed(0)
    rewarder = Rewarder(WIDTH, CLASSES).double()
    assert torch.autograd.gradcheck(rewarder, (drawn(2, WIDTH).requires_grad_(), one_hot(0, 2).requires_grad_()))


def test_a_network_inside_a_step_learns_as_with_adam() -> None:
    torch.manual_seed(0)
    own = Trained(make_generator(WIDTH, CLASSES).double()).double()
    other = copy.deepcopy(own.network).requires_grad_(True)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    for seed in range(5):
        features = drawn(4, WIDTH, seed=seed)
        optimizer.zero_grad()
        other(features).square().mean().backward()
        optimizer.step()
        leaves = own.leaves()
        loss = torch.func.functional_call(own.network, leaves, (features,)).square().mean()
        own.step(torch.autograd.grad(loss, list(leaves.values())), 0.01)
    assert not any(parameter.requires_grad for parameter in own.parameters())
    for one, expected in zip(own.network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, expected.detach(), atol=1e-9, rtol=0)


def test_the_mean_of_rewarders_keeps_its_momentum() -> None:
    rule = SemiReward(Host(), momentum=0.75)
    kept = made(rule)
    before = [parameter.clone() for parameter in kept.scorer.parameters()]
    rule.learn(kept, seen(), torch.tensor([0, 1, 2, 0, 1, 2]))
    for old, mean, now in zip(before, kept.scorer.parameters(), kept.rewarder.network.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.75 * old + 0.25 * now, atol=1e-9, rtol=0)


def test_the_rewarder_learns_what_labels_are_worth() -> None:
    kept = made(SemiReward(Host()))
    generator = copy.deepcopy(kept.generator.state_dict())
    features = seen().features[:1].expand(6, -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(30):
            kept.generator.load_state_dict(generator)  # one that has learned nothing goes on being wrong
            kept.learn(features, torch.tensor([1] * 6), learning_rate=1e-3, momentum=0.5)
    rewards = kept.scorer(features[:3], one_hot(0, 1, 2))
    torch.testing.assert_close(rewards, torch.tensor([0.5, 1, 0.5], dtype=torch.float64), atol=0.05, rtol=0)


def test_the_generator_learns_to_draw_labels_of_high_reward() -> None:
    rule = SemiReward(Host(), learning_rate=5e-3)
    kept = made(rule)
    features = seen().features
    sharp = [kept.rewarder.network(features, one_hot(*[label] * 6)).mean().item() for label in range(CLASSES)]
    rewarder = copy.deepcopy(kept.rewarder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(30):
            kept.rewarder.load_state_dict(rewarder.state_dict())  # rewards that stay as they are
            kept.learn(features, torch.tensor([0, 1, 2, 0, 1, 2]), rule.learning_rate, rule.momentum)
    assert set(kept.generator.network(features).argmax(dim=1).tolist()) == {max(range(CLASSES), key=sharp.__getitem__)}


def test_until_the_first_part_is_done_the_other_rule_decides_alone() -> None:
    rule = SemiReward(Host(), start=0.1)
    kept = made(rule)
    rule.begin_round(kept, first=True)
    for progress in (0.05, 0.099):
        rule.learn(kept, seen(), torch.tensor([0, 1, 2, 0, 1, 2]))
        found, expected = rule.targets(kept, seen()), Host().targets(None, seen())
        assert torch.equal(found.weights, expected.weights)
        rule.after_step(kept, progress)
    rule.after_step(kept, 0.1)
    before = arrays(kept)
    rule.learn(kept, seen(), torch.tensor([0, 1, 2, 0, 1, 2]))  # rewards are learned from labels no longer
    assert all(torch.equal(tensor, before[name]) for name, tensor in arrays(kept).items())
    assert int(rule.targets(kept, seen()).weights.sum()) < int(expected.weights.sum())


def test_after_it_labels_below_the_mean_reward_are_dropped_and_the_rest_stays() -> None:
    rule = SemiReward(Host(), every=1000)
    kept = taught(rule)
    found, host = rule.targets(kept, seen()), Host().targets(None, seen())
    labels = F.one_hot(host.labels, CLASSES).double()
    rewards = kept.scorer(seen().features, labels).tolist()
    mean = sum(rewards) / len(rewards)
    expected = [weight * (reward >= mean) for weight, reward in zip(host.weights.tolist(), rewards, strict=True)]
    assert found.weights.tolist() == expected
    assert 0 < sum(expected) < host.weights.sum()
    assert torch.equal(found.labels, host.labels)
    assert rule.regularise(kept, seen().logits, found).item() == sum(expected)  # of what is left


def test_a_reward_that_is_the_same_for_all_leaves_the_other_rule() -> None:
    rule = SemiReward(Host())
    kept = taught(rule)
    with torch.no_grad():
        kept.scorer.answer[-1].weight.zero_()
        kept.scorer.answer[-1].bias.fill_(100.0)
    assert torch.equal(rule.targets(kept, seen()).weights, Host().targets(None, seen()).weights)


def test_every_so_many_steps_accepted_examples_teach() -> None:
    rule = SemiReward(Host(), every=4)
    kept = taught(rule)
    changed = []
    for _ in range(8):
        before = int(kept.rewarder.steps)
        rule.targets(kept, seen())
        changed.append(int(kept.rewarder.steps) > before)
        rule.after_step(kept, 0.6)
    assert changed == [int(step) % 4 == 0 for step in range(3, 11)]
    rule.after_step(kept, 0.6)
    before = arrays(kept)
    flat = Seen(seen().views, seen().features, torch.zeros(6, CLASSES, dtype=torch.float64), seen().places)
    assert int(kept.steps) % 4 == 0
    assert rule.targets(kept, flat).weights.tolist() == [0] * 6  # none is accepted: nobody teaches
    assert all(torch.equal(tensor, before[name]) for name, tensor in arrays(kept).items())


def test_a_client_without_labels_goes_on_with_the_other_rule() -> None:
    rule = SemiReward(Host(), every=1)
    kept = made(rule)
    rule.begin_round(kept, first=True)
    for progress in (0.05, 0.5, 0.9):
        assert torch.equal(rule.targets(kept, seen()).weights, Host().targets(None, seen()).weights)
        rule.after_step(kept, progress)
    assert int(kept.rewarder.steps) == 0


def test_the_first_part_of_a_client_that_joins_late_is_its_first_round() -> None:
    rule = SemiReward(Host())
    kept = made(rule)
    rule.begin_round(kept, first=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for progress in (0.7, 0.71, 0.72):
        rule.learn(kept, seen(), labels)
        assert torch.equal(rule.targets(kept, seen()).weights, Host().targets(None, seen()).weights)
        rule.after_step(kept, progress)
    assert int(kept.taught) == 3
    rule.begin_round(kept, first=False)
    rule.learn(kept, seen(), labels)
    assert int(kept.taught) == 3
    assert rule.targets(kept, seen()).weights.sum() < Host().targets(None, seen()).weights.sum()


def test_no_optimizer_of_the_model_sees_what_it_keeps_and_targets_carry_no_graph() -> None:
    rule = SemiReward(Prg())
    kept = taught(rule)
    assert not any(parameter.requires_grad for parameter in kept.parameters())
    assert not rule.targets(kept, seen()).weights.requires_grad
    assert int(kept.host.count) == 1  # the other rule keeps its own beside


def test_two_clients_of_one_rule_know_nothing_of_each_other_and_go_on_from_what_they_remember() -> None:
    rule = SemiReward(Prg(threshold=0.4), every=2)

    def some_steps(kept: Rewards, seeds: range) -> list[Tensor]:
        weights = []
        for seed in seeds:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                rule.learn(kept, seen(seed=seed), torch.tensor([0, 1, 2, 0, 1, 2]))
                weights.append(rule.targets(kept, seen(seed=seed)).weights)
            rule.after_step(kept, (seed + 1) / 20)
        return weights

    whole = made(rule)
    expected = some_steps(whole, range(8))
    first, other = made(rule), made(rule, seed=5)
    found = some_steps(first, range(4))
    some_steps(other, range(3))
    again = made(rule, seed=9)
    again.load_state_dict(first.state_dict())
    found += some_steps(again, range(4, 8))
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    assert all(torch.equal(tensor, arrays(whole)[name]) for name, tensor in arrays(again).items())


@pytest.mark.parametrize(("name", "value"), [("start", 1.5), ("every", 0), ("learning_rate", 0.0), ("momentum", -0.1)])
def test_a_bad_setting_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        SemiReward(Host(), **{name: value})


def test_the_configuration_wraps_another_rule() -> None:
    objective = build(load("objective=semireward objective.rule.rule.threshold=0.8"), "objective")
    assert isinstance(objective.rule, SemiReward)
    assert objective.rule.rule.threshold == 0.8
