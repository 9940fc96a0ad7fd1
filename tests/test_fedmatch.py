"""FedMatch: labels move sigma, agreement moves psi, helpers vote, and the server finds who is alike."""

import json
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import batch_of
from quadratics import sgd
from shards import SURE, asked, goes_on_to_the_same_bits, reader, shard
from test_runs import TINY
from torch import Tensor, nn

from clients.fedmatch import EMBEDDING, FedMatchTraining, noise
from clients.fedprox import FedProx
from clients.local_training import Work
from fedssl.arrays import Arrays
from fedssl.models import bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.fedmatch import PSI, SIGMA, FedMatch, consistency, helper, vote
from fedssl.objectives.objective import UNKNOWN, Batch, Population
from fedssl.objectives.pseudo_labels import Targets
from fedssl.objectives.supervised import Supervised, classify
from fedssl.wire import LocalUpdate
from simulate import main
from strategies.base import Plan
from strategies.fedmatch import FedMatch as Server
from strategies.fedmatch import nearest

TRAINING = FedMatchTraining(sgd(0.001), batch_size=4)
PLAN = Plan(rounds=9, seed=0, num_clients=3, cohort=None, quorum=1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parts(model: nn.ModuleDict, group: str) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model[group].parameters()]


def whole(model: nn.ModuleDict) -> list[Tensor]:
    return [*parts(model, "backbone"), *parts(model, "classifier")]


# Votes and divergences


def test_most_models_decide_and_the_own_breaks_ties() -> None:
    zero, one, two = (10 * torch.eye(3)[[place]] for place in range(3))
    assert vote(two, []).tolist() == [2]
    assert vote(two, [one, one]).tolist() == [1]
    assert vote(two, [one, two]).tolist() == [2]
    assert vote(two, [zero, one]).tolist() == [2]  # one each
    assert vote(two, [zero]).tolist() == [2]


def test_the_divergence_from_a_helper_that_knows_is_the_surprise_of_the_own_answer() -> None:
    own, helpers = torch.zeros(2, 4, dtype=torch.float64), [torch.tensor([[1e3, 0, 0, 0]] * 2, dtype=torch.float64)]
    sure = Targets(torch.zeros(2, dtype=torch.int64), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert consistency(own, helpers, sure).item() == pytest.approx(log(4) / 2, abs=1e-9)
    assert consistency(own, [own], sure).item() == pytest.approx(0, abs=1e-9)
    assert consistency(own, [], sure).item() == 0


def test_the_divergence_is_that_of_a_slow_loop_with_its_gradient() -> None:
    own, helpers = drawn(4, 3).requires_grad_(), [drawn(4, 3, seed=1), drawn(4, 3, seed=2)]
    sure = Targets(torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    total = 0.0
    for place in (0, 2, 3):
        for logits in helpers:
            theirs, ours = logits[place].softmax(0).tolist(), own[place].softmax(0).tolist()
            total += sum(p * log(p / q) for p, q in zip(theirs, ours, strict=True)) / 2
    assert consistency(own, helpers, sure).item() == pytest.approx(total / 4, abs=1e-9)
    assert torch.autograd.gradcheck(lambda rows: consistency(rows, helpers, sure), own)


# The objective


def network(objective: FedMatch, norm: str = "group") -> nn.ModuleDict:
    model = bundle.build_bundle(
        lambda: small_resnet(in_channels=1, width=4, norm=norm), objective, 0, Population(0, 3)
    ).double()
    objective.begin_round(model, first=True)
    return model


def some_batch(labels: list[int]) -> Batch:
    views = torch.rand(2, len(labels), 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return batch_of(*views, labels=torch.tensor(labels))


def test_the_parts_begin_in_their_shares_of_the_network_as_it_was_drawn() -> None:
    model, plain = (
        network(FedMatch()),
        bundle.build_bundle(
            lambda: small_resnet(in_channels=1, width=4, norm="group"), Supervised(), 0, Population(0, 3)
        ).double(),
    )
    for drawn_one, both, sigma, psi in zip(
        whole(plain), whole(model), parts(model, SIGMA), parts(model, PSI), strict=True
    ):
        torch.testing.assert_close(both, drawn_one)
        torch.testing.assert_close(sigma + psi, both, atol=1e-7, rtol=0)
        torch.testing.assert_close(psi, 0.2 * sigma, atol=1e-7, rtol=1e-6)


GROUPS = {"labelled": [0, 1, 2], "unlabelled": [UNKNOWN] * 3, "both": [0, 1, UNKNOWN]}


@pytest.mark.parametrize("kind", GROUPS)
def test_labels_move_only_sigma_and_unlabelled_examples_only_psi(kind: str) -> None:
    objective = FedMatch(threshold=0.0)
    model = network(objective)
    objective.step(model, some_batch(GROUPS[kind])).loss.backward()
    moved = {name.split(".")[0] for name, tensor in model.named_parameters() if tensor.grad is not None}
    assert moved == {"labelled": {SIGMA}, "unlabelled": {PSI}, "both": {SIGMA, PSI}}[kind]
    for group in moved:
        assert any(parameter.grad.abs().max() > 0 for parameter in model[group].parameters())


def test_the_gradients_of_both_kinds_of_examples_do_not_mix() -> None:
    objective = FedMatch(threshold=0.0)

    def gradients(labels: list[int], group: str) -> list[Tensor]:
        model = network(objective)
        objective.step(model, some_batch(labels)).loss.backward()
        return [parameter.grad for parameter in model[group].parameters()]

    def plain(labels: list[int]) -> list[Tensor]:
        model = network(objective)
        trained = [
            parameter.requires_grad_()
            for group in ("backbone", "classifier")
            for parameter in model[group].parameters()
        ]
        known = some_batch(labels).where(torch.tensor(labels) != UNKNOWN)
        loss = 10 * torch.nn.functional.cross_entropy(classify(model, known.views[0]), known.labels)
        return list(torch.autograd.grad(loss, trained))

    for found, expected in zip(gradients([0, 2, UNKNOWN], SIGMA), plain([0, 2, UNKNOWN]), strict=True):
        torch.testing.assert_close(found, expected)
    first = gradients([0, 2, UNKNOWN], PSI)
    second = gradients([1, 1, UNKNOWN], PSI)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_step_is_the_sum_of_its_weighted_terms() -> None:
    objective = FedMatch(3.0, 0.5, 0.25, 2.0, 0.1, threshold=0.5)
    model = reader(objective).double()
    objective.begin_round(model, first=True)
    helpers = [helper(model, {f"{PSI}.{place}": (psi + 1.0).numpy() for place, psi in enumerate(parts(model, PSI))})]
    with torch.no_grad():
        helpers[0]["classifier"].weight.copy_(torch.eye(3).flip(0) * 5)  # says 2 where the model says 0
        helpers[0]["classifier"].bias.zero_()
    light = torch.tensor([[0.0, 0.1, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64).view(3, 3, 1, 1, 1)
    strong = drawn(3, 3, 1, 1, 1)
    step = objective.with_helpers(helpers).step(model, batch_of(light, strong, labels=torch.tensor([2, -1, -1])))

    def probabilities(logits: list[float]) -> list[float]:
        return [exp(value) / sum(map(exp, logits)) for value in logits]

    supervised = -log(probabilities([0, 1, 0])[2])
    # the second example is sure: a vote each, so the own class 0 it is; the third is at 1/3 and does not count
    agreement = -log(probabilities((10 * strong[1].flatten()).tolist())[0]) / 2
    ours, theirs = probabilities([10, 0, 0]), probabilities([0, 0, 5])
    divergence = sum(p * log(p / q) for p, q in zip(theirs, ours, strict=True)) / 2
    distance = sum((s - p).square().sum().item() for s, p in zip(parts(model, SIGMA), parts(model, PSI), strict=True))
    size = sum(p.abs().sum().item() for p in parts(model, PSI))
    assert step.metrics["supervised-loss"] == pytest.approx(supervised, abs=1e-9)
    assert step.metrics["unsupervised-loss"] == pytest.approx(0.5 * agreement + 0.25 * divergence, abs=1e-9)
    expected = 3 * supervised + 0.5 * agreement + 0.25 * divergence + 2 * distance + 0.1 * size
    assert step.loss.item() == pytest.approx(expected, abs=1e-9)
    assert (step.pseudo_labels.labels[0], step.pseudo_labels.accepted.tolist()) == (0, [True, False])


def test_an_examples_unlabelled_loss_does_not_depend_on_the_others_of_its_batch() -> None:
    objective = FedMatch(threshold=0.35, l1_weight=0, l2_weight=0)
    model, batch = network(objective), some_batch([UNKNOWN] * 4)
    singles = [objective.step(model, batch.where(torch.arange(4) == place)).loss for place in range(4)]
    torch.testing.assert_close(objective.step(model, batch).loss, torch.stack(singles).mean())


def test_after_a_step_the_network_is_the_sum_and_a_new_round_gives_sigma_the_rest() -> None:
    objective = FedMatch()
    model = network(objective)
    with torch.no_grad():
        for group, far in ((SIGMA, 1.0), (PSI, 0.5)):
            for parameter in model[group].parameters():
                parameter.add_(far)
    before = whole(model)
    objective.after_step(model, 0.5)
    for old, new in zip(before, whole(model), strict=True):
        torch.testing.assert_close(new, old + 1.5, atol=1e-6, rtol=0)
    with torch.no_grad():
        for parameter in model[PSI].parameters():
            parameter.zero_()
    objective.begin_round(model, first=False)
    assert all(torch.equal(sigma, both) for sigma, both in zip(parts(model, SIGMA), whole(model), strict=True))


def test_running_statistics_are_the_networks_own() -> None:
    objective = FedMatch()
    model = network(objective, norm="batch").train()
    before = {name: buffer.clone() for name, buffer in model["backbone"].named_buffers()}
    objective.step(model, some_batch([0, 1, UNKNOWN, UNKNOWN]))
    assert any(not torch.equal(buffer, before[name]) for name, buffer in model["backbone"].named_buffers())
    assert not list(model[PSI].buffers()) + list(model[SIGMA].buffers())


def test_a_helper_has_this_clients_sigma_and_the_others_psi() -> None:
    objective = FedMatch()
    model = network(objective, norm="batch")
    other = {f"{PSI}.{place}": (3 * psi).numpy() for place, psi in enumerate(parts(model, PSI))}
    made = helper(model, other)
    for both, sigma, psi in zip(whole(made), parts(model, SIGMA), parts(model, PSI), strict=True):
        torch.testing.assert_close(both, sigma + 3 * psi)
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert not made.training


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 2.0),
        ("l2_weight", -1.0),
        ("psi_share", -0.5),
        ("supervised_weight", -1.0),
        ("unlabelled_ratio", 0),
    ],
)
def test_a_bad_setting_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        FedMatch(**{name: value})


# The client


def received(model: nn.ModuleDict, **extras: Arrays):  # noqa: ANN201
    return asked(model, FedMatch(), **extras)


def test_a_client_sends_what_its_trained_network_says_of_noise() -> None:
    model, objective = reader(FedMatch()), FedMatch()
    outcome = TRAINING.train(Work(model, objective, shard([SURE] * 3, labels=[0, -1, -1]), received(model), 0))
    said = outcome.sent[EMBEDDING]["probabilities"]
    image = noise(0, torch.zeros(1, 3, 1, 1, 1))
    torch.testing.assert_close(torch.tensor(said), classify(model, image).softmax(dim=1)[0])
    assert (said.dtype, said.shape) == (np.float32, (3,))
    for both, sigma, psi in zip(whole(model), parts(model, SIGMA), parts(model, PSI), strict=True):
        assert torch.equal(both, sigma + psi)


def test_the_noise_is_the_same_for_all_clients_of_a_run_and_lies_in_the_range_of_pixels() -> None:
    image = noise(3, torch.zeros(1, 3, 1, 32, 32))
    assert torch.equal(image, noise(3, torch.zeros(1, 3, 1, 32, 32)))
    assert not torch.equal(image, noise(4, torch.zeros(1, 3, 1, 32, 32)))
    assert 0 <= image.min() < 0.01 < 0.99 < image.max() <= 1
    assert image.mean().item() == pytest.approx(0.5, abs=0.02)


def test_two_helpers_outvote_the_client() -> None:
    model, objective = reader(FedMatch()), FedMatch()
    turned = 10 * torch.eye(3)[[1, 2, 0]]  # a network that takes SURE for class 2
    sigma = [both - psi for both, psi in zip(whole(model), parts(model, PSI), strict=True)]
    other = {f"{PSI}.0": (turned - sigma[0]).numpy(), f"{PSI}.1": parts(model, PSI)[1].numpy()}
    examples = shard([SURE] * 4, truth=[2] * 4)

    def right(**extras: Arrays) -> float:
        fresh = reader(FedMatch())
        return TRAINING.train(Work(fresh, objective, examples, received(fresh, **extras), 0)).metrics[
            "pseudo-label accuracy"
        ]

    assert right() == 0
    assert right(helper0=other) == 0  # one against one
    assert right(helper0=other, helper1=other) == 1


def test_another_client_rule_sees_the_trained_and_exchanged_psi_alone() -> None:
    model, objective = reader(FedMatch()), FedMatch()
    task = received(model)
    assert {name.split(".")[0] for name in task.arrays} == {"classifier", PSI}  # this backbone has no parameters
    outcome = FedProx(sgd(0.001), mu=1.0).train(Work(model, objective, shard([SURE] * 3), task, 0))
    assert outcome.metrics["penalty"] >= 0


def test_what_does_not_go_together_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = reader(FedMatch())
    with pytest.raises(ValueError, match="client=fedmatch needs objective=fedmatch, got Supervised"):
        TRAINING.train(Work(model, Supervised(), shard([SURE]), received(model), 0))
    assert main([*TINY, "engine=local", "strategy=fedmatch", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "strategy=fedmatch needs objective=fedmatch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# The server


def test_the_nearest_others_come_first() -> None:
    points = {0: [0.0, 0.0], 3: [1.0, 0.0], 5: [3.0, 0.0], 9: [3.0, 0.0]}
    embeddings = {client: np.array(point, np.float32) for client, point in points.items()}
    assert nearest(embeddings, 2) == {0: [3, 5], 3: [0, 5], 5: [9, 3], 9: [5, 3]}
    assert nearest(embeddings, 9)[3] == [0, 5, 9]
    assert nearest(embeddings, 0) == {0: [], 3: [], 5: [], 9: []}
    assert nearest({}, 2) == {}


CURRENT = {"classifier.bias": np.zeros(2, np.float32), "psi.0": np.zeros(2, np.float32)}


def update(client: int, value: float, number: int, answer: float) -> LocalUpdate:
    arrays = {name: np.full(2, value, np.float32) for name in CURRENT}
    said = np.array([answer, 1 - answer], np.float32)
    return LocalUpdate(client, 1, arrays, number, {}, {EMBEDDING: {"probabilities": said}})


def after_a_round(**settings: int) -> Server:
    strategy = Server(**settings)
    strategy.task(CURRENT, 1, PLAN)
    assert strategy.personal(0) == {}  # nobody has answered
    updates = [update(0, 1.0, 1, 0.1), update(1, 2.0, 1, 0.9), update(2, 6.0, 7, 0.2)]
    assert strategy.merge(CURRENT, iter(updates), 1)["psi.0"].tolist() == [3.0, 3.0]  # 9 / 3, whatever their sizes
    return strategy


def test_helpers_are_chosen_when_it_is_time_and_send_their_last_psi() -> None:
    strategy = after_a_round(num_helpers=1, refresh_every=2)
    strategy.task(CURRENT, 2, PLAN)
    assert strategy.personal(0) == {}
    strategy.task(CURRENT, 3, PLAN)
    sent = strategy.personal(0)
    assert {name: list(arrays) for name, arrays in sent.items()} == {"helper0": ["psi.0"]}
    assert sent["helper0"]["psi.0"].tolist() == [6.0, 6.0]  # of client 2
    strategy.merge(CURRENT, iter([update(2, 5.0, 1, 0.9)]), 3)
    strategy.task(CURRENT, 4, PLAN)
    assert strategy.personal(0)["helper0"]["psi.0"].tolist() == [5.0, 5.0]
    strategy.task(CURRENT, 5, PLAN)
    assert strategy.personal(1)["helper0"]["psi.0"].tolist() == [5.0, 5.0]
    assert strategy.personal(7) == {}  # never took part


@pytest.mark.parametrize("refresh_every", [1, 2, 3])
def test_a_server_that_is_restored_goes_on_with_the_same_helpers(refresh_every: int) -> None:
    first, second = after_a_round(refresh_every=refresh_every), Server(refresh_every=refresh_every)
    for number in (2, 3):
        first.task(CURRENT, number, PLAN)
        first.merge(CURRENT, iter([update(number - 2, number, 1, 0.3 * number)]), number)
    second.restore(first.state(), CURRENT)
    for number in (4, 5):
        for strategy in (first, second):
            strategy.task(CURRENT, number, PLAN)
        for client in range(3):
            one, other = first.personal(client), second.personal(client)
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[name]["psi.0"], other[name]["psi.0"]) for name in one)


def test_a_run_goes_on_to_the_same_bits_and_its_clients_get_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "objective=fedmatch", "client=fedmatch", "strategy=fedmatch", "strategy.refresh_every=2", "cohort=null",
        "labels=partial_data", "labels.share=0.4", "optimizer.lr=0.002",
    ]  # fmt: skip
    goes_on_to_the_same_bits(words, tmp_path, monkeypatch)
    records = [json.loads(line) for line in (tmp_path / "whole" / "rounds.jsonl").read_text().splitlines()]
    downs = [record["bytes_down"] for record in records]
    assert downs[0] == downs[1]
    assert 1.9 < downs[2] / downs[1] < 2.1  # two helpers' psi beside the network and psi
