"""SemiFL: labels fixed once a round, mixtures with all of a client's examples, and a server with momentum."""

import json
from dataclasses import replace
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import batch_of
from quadratics import sgd
from scipy.stats import beta
from shards import SURE, UNSURE, asked, goes_on_to_the_same_bits, reader, shard
from torch import Tensor, nn

from clients.local_training import LocalTraining, Work
from clients.pseudo_labelling import probabilities
from clients.semifl import SemiFLTraining
from fedssl.compose import load
from fedssl.config import build
from fedssl.models import bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.objective import UNKNOWN, Batch, Objective, Population, Step
from fedssl.objectives.semifl import SemiFL, mixed_cross_entropy
from fedssl.objectives.supervised import Supervised
from fedssl.training.loop import Examples
from fedssl.wire import LocalUpdate

TRAINING = SemiFLTraining(sgd(0.1), batch_size=4)


def work(model: nn.ModuleDict, objective: Objective, examples: Examples) -> Work:
    return Work(model, objective, examples, asked(model, objective), 0)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The loss


def test_a_mixture_costs_its_shares_of_both_classes() -> None:
    logits = torch.tensor([[log(2.0), 0.0, 0.0]], dtype=torch.float64)  # probabilities 1/2, 1/4, 1/4
    first, second, share = torch.tensor([0]), torch.tensor([2]), torch.tensor([0.25], dtype=torch.float64)
    expected = 0.25 * log(2) + 0.75 * log(4)
    assert mixed_cross_entropy(logits, first, second, share).item() == pytest.approx(expected, abs=1e-9)


def test_the_mixed_loss_is_that_of_a_slow_loop_with_its_gradient() -> None:
    logits, share = drawn(5, 4).requires_grad_(), drawn(5, seed=1).sigmoid()
    first, second = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 3, 1, 0, 0])
    total = 0.0
    for row, one, other, part in zip(logits.tolist(), first, second, share.tolist(), strict=True):
        norm = log(sum(exp(value) for value in row))
        total += part * (norm - row[one]) + (1 - part) * (norm - row[other])
    assert mixed_cross_entropy(logits, first, second, share).item() == pytest.approx(total / 5, abs=1e-9)
    assert torch.autograd.gradcheck(lambda rows: mixed_cross_entropy(rows, first, second, share), logits)


def test_a_step_is_the_strong_view_and_the_mixture_of_light_views() -> None:
    objective = SemiFL().with_partners(torch.tensor([0, 1, 2, 2]))
    model = reader(objective).double()
    light, strong = drawn(4, 3, 1, 1, 1), drawn(4, 3, 1, 1, 1, seed=1)
    uniforms = torch.tensor([[0.3], [0.8], [0.5], [0.5]], dtype=torch.float64)
    batch = batch_of(light, strong, uniforms=uniforms, labels=torch.tensor([0, 1, UNKNOWN, UNKNOWN]))
    shares = beta.ppf([0.3, 0.8], 0.75, 0.75)
    points, strongs = light.flatten(1), strong.flatten(1)

    def cost(point: Tensor, label: int) -> float:
        return -torch.log_softmax(10 * point, dim=0)[label].item()

    fix = (cost(strongs[0], 0) + cost(strongs[1], 1)) / 2
    mix = 0.0
    for place, (share, own, other) in enumerate(zip(shares, [0, 1], [2, 2], strict=True)):
        mixture = share * points[place] + (1 - share) * points[2 + place]
        mix += (share * cost(mixture, own) + (1 - share) * cost(mixture, other)) / 2
    step = objective.step(model, batch)
    assert step.metrics == {"fix-loss": pytest.approx(fix, abs=1e-9), "mix-loss": pytest.approx(mix, abs=1e-9)}
    assert step.loss.item() == pytest.approx(fix + mix, abs=1e-9)


@pytest.mark.parametrize("labels", [[0, 1], [0, UNKNOWN], [UNKNOWN, UNKNOWN]])
def test_without_partners_only_light_views_with_labels_cost(labels: list[int]) -> None:
    model, light = reader(SemiFL()).double(), drawn(2, 3, 1, 1, 1)
    loss = SemiFL().step(model, batch_of(light, drawn(2, 3, 1, 1, 1, seed=1), labels=torch.tensor(labels))).loss
    known = [
        -torch.log_softmax(10 * view.flatten(), dim=0)[label].item()
        for view, label in zip(light, labels, strict=True)
        if label != UNKNOWN
    ]
    assert loss.item() == pytest.approx(sum(known) / max(1, len(known)), abs=1e-9)
    loss.backward()
    assert torch.isfinite(model["classifier"].weight.grad).all()


# The client


def test_the_whole_shard_is_labelled_by_the_model_that_came_whatever_the_batches() -> None:
    examples, objective = shard([SURE, UNSURE, (0.0, 0.0, 1.0)]), SemiFL()
    said = probabilities(work(reader(objective), objective, examples), 2)
    odds = exp(10 * 26 / 255)
    expected = [1 / (1 + 2 * exp(-10)), odds / (odds + 2), 1 / (1 + 2 * exp(-10))]
    torch.testing.assert_close(said.max(dim=1).values, torch.tensor(expected))
    assert said.argmax(dim=1).tolist() == [0, 1, 2]
    assert torch.equal(said, probabilities(work(reader(objective), objective, examples), 3))


def test_labelling_leaves_running_statistics_as_they_came() -> None:
    model = bundle.build_bundle(lambda: small_resnet(in_channels=3, width=4), SemiFL(), 0, Population(0, 3))
    before = bundle.arrays(model, None)
    probabilities(work(model, SemiFL(), shard([SURE] * 4)), 2)
    assert all(np.array_equal(array, before[name]) for name, array in bundle.arrays(model, None).items())


def test_sure_examples_are_accepted_and_counted_against_the_truth() -> None:
    examples = shard([SURE, UNSURE, SURE, SURE], truth=[0, 1, 0, 2])
    model = reader(SemiFL())
    outcome = TRAINING.train(Work(model, SemiFL(), examples, asked(model, SemiFL()), 0))
    assert outcome.num_examples == 3
    assert outcome.metrics["pseudo-label coverage"] == pytest.approx(3 / 4)
    assert outcome.metrics["pseudo-label accuracy"] == pytest.approx(2 / 3)
    assert outcome.metrics["num-steps"] == 2  # of three pairs, two a batch


def test_a_client_without_a_sure_example_has_nothing_to_contribute_and_leaves_the_model_as_it_came() -> None:
    model = reader(SemiFL())
    before = bundle.arrays(model, None)
    outcome = TRAINING.train(Work(model, SemiFL(), shard([UNSURE] * 3), asked(model, SemiFL()), 0))
    assert outcome.num_examples == 0
    assert outcome.metrics == {"pseudo-label coverage": 0.0}
    assert all(np.array_equal(array, before[name]) for name, array in bundle.arrays(model, None).items())


class Heard(SemiFL):
    """Remembers its batches, with what the partners are taken for."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[list[float], int, list[float], int]] = []

    def step(self, model: torch.nn.ModuleDict, batch: Batch) -> Step:
        known, others = batch.where(batch.labelled), batch.where(~batch.labelled)
        rows = (known.views[0].flatten(1), known.labels, others.views[0].flatten(1), self._partners[others.places])
        self.pairs += zip(*(column.tolist() for column in rows), strict=True)
        return super().step(model, batch)


def test_partners_are_as_many_and_come_from_all_examples_with_what_they_are_taken_for() -> None:
    objective = Heard()
    model = reader(objective)
    points = [SURE] * 8 + [UNSURE] * 8
    replace(TRAINING, epochs=2).train(Work(model, objective, shard(points), asked(model, objective), 0))
    assert len(objective.pairs) == 16  # 8 accepted in each of two epochs
    assert all(point == list(SURE) and label == 0 for point, label, _, _ in objective.pairs)
    partners = {(tuple(round(value, 1) for value in point), label) for _, _, point, label in objective.pairs}
    assert partners == {(SURE, 0), (UNSURE, 1)}


def test_labels_that_a_client_knows_are_kept() -> None:
    objective = Heard()
    model = reader(objective)
    examples = shard([SURE, UNSURE, UNSURE], labels=[2, 1, UNKNOWN])
    outcome = TRAINING.train(Work(model, objective, examples, asked(model, objective), 0))
    assert outcome.num_examples == 2
    assert {(round(point[0]), label) for point, label, _, _ in objective.pairs} == {(1, 2), (0, 1)}
    assert outcome.metrics["pseudo-label coverage"] == 0.0  # of the one without a label


def test_a_client_that_knows_all_of_its_labels_learns_from_them_alone() -> None:
    examples, trained = shard([SURE, UNSURE, SURE], labels=[2, 1, 0]), []
    for procedure in (TRAINING, LocalTraining(sgd(0.1), batch_size=4)):
        model = reader(SemiFL())
        assert procedure.train(Work(model, SemiFL(), examples, asked(model, SemiFL()), 0)).num_examples is None
        trained.append(bundle.arrays(model, None))
    assert all(np.array_equal(array, trained[1][name]) for name, array in trained[0].items())


def test_the_truth_changes_no_bit_of_the_model() -> None:
    def trained(truth: list[int] | None) -> dict:
        model = reader(SemiFL())
        TRAINING.train(Work(model, SemiFL(), shard([SURE, UNSURE, SURE], truth=truth), asked(model, SemiFL()), 0))
        return bundle.arrays(model, None)

    assert all(np.array_equal(array, trained([2, 2, 1])[name]) for name, array in trained(None).items())


def test_another_objective_is_refused() -> None:
    model = reader(SemiFL())
    with pytest.raises(ValueError, match="client=semifl needs objective=semifl, got Supervised"):
        TRAINING.train(Work(model, Supervised(), shard([SURE]), asked(model, SemiFL()), 0))


def test_a_bad_setting_is_named() -> None:
    with pytest.raises(ValueError, match="mix_alpha must be above 0, got 0"):
        SemiFL(mix_alpha=0)
    with pytest.raises(ValueError, match="threshold must be between 0 and 1, got 2"):
        replace(TRAINING, threshold=2)


# The server


def test_the_server_steps_with_momentum_towards_the_plain_mean() -> None:
    strategy = build(load(["objective=semifl", "client=semifl", "strategy=semifl"]), "strategy")
    current = {"backbone.w": np.zeros(1, np.float32)}
    for number, expected in ((1, 2.0), (2, 5.0)):
        # the clients' mean is 2 further on; the second step also goes half as far again as the first
        updates = [
            LocalUpdate(client, number, {"backbone.w": current["backbone.w"] + far}, examples, {})
            for client, (far, examples) in enumerate([(1.0, 1), (3.0, 9)])
        ]
        current = strategy.merge(current, iter(updates), number)
        assert current["backbone.w"] == pytest.approx([expected])


def test_a_run_with_labels_at_the_server_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["objective=semifl", "client=semifl", "strategy=semifl", "labels=labels_at_server", "labels.num_labels=8"]
    goes_on_to_the_same_bits([*words, "client.threshold=0.52"], tmp_path, monkeypatch)
    rounds = [json.loads(line) for line in (tmp_path / "whole" / "rounds.jsonl").read_text().splitlines()]
    assert any(record["metrics"]["pseudo-label coverage"] > 0 for record in rounds)
