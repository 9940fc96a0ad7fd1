"""FedIRM: relation matrices by hand, on clients, on the server, and what they add to the loss."""

from functools import partial
from math import exp, log

import numpy as np
import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from clients.fedirm import FedIRMTraining
from clients.local_training import Work
from fedssl.data.arrays import ArrayDataset
from fedssl.models import bundle
from fedssl.objectives.fedirm import FedIRM, relation_divergence, relation_rows
from fedssl.objectives.mean_teacher import MeanTeacher
from fedssl.objectives.objective import UNKNOWN, Batch, Population
from fedssl.objectives.supervised import class_sums
from fedssl.training.augment import ClipAugmentation
from fedssl.training.loop import Examples
from fedssl.wire import LocalUpdate, TrainTask
from strategies.base import Plan
from strategies.class_means import ClassMeans

CLASSES = 3
OBJECTIVE = FedIRM(ramp=0.0)
TRAINING = FedIRMTraining(partial(torch.optim.SGD, lr=0.1), batch_size=4)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Relation matrices


def test_a_row_is_the_softened_mean_of_the_logits_of_its_class() -> None:
    # class 0: (4 log 3, 0) and (0, 0) have the mean (2 log 3, 0), divided by 2 (log 3, 0): 3/4 and 1/4
    logits = torch.tensor([[4 * log(3), 0], [0, 0], [1, 9]], dtype=torch.float64)
    sums, counts = class_sums(logits, torch.tensor([0, 0, 1]), logits.shape[1])
    assert counts.tolist() == [2, 1]
    rows = relation_rows(sums, counts, 2.0)
    assert rows[0].tolist() == pytest.approx([3 / 4, 1 / 4], abs=1e-12)
    assert rows[1].tolist() == pytest.approx([1 / (1 + exp(4)), 1 / (1 + exp(-4))], abs=1e-12)


def test_a_class_of_no_example_has_a_uniform_row() -> None:
    sums, counts = class_sums(drawn(0, 4), torch.zeros(0, dtype=torch.int64), 4)
    assert relation_rows(sums, counts, 2.0).flatten().tolist() == pytest.approx([0.25] * 16)


def test_rows_of_3_to_1_and_1_to_3_diverge_by_half_the_log_of_3() -> None:
    first = torch.tensor([[0.75, 0.25], [0.75, 0.25]], dtype=torch.float64)
    second = torch.tensor([[0.25, 0.75], [0.75, 0.25]], dtype=torch.float64)
    both, one = torch.tensor([True, True]), torch.tensor([False, True])
    # each divergence is log(3) / 2 and their half sum too; the mean is over both classes
    assert relation_divergence(first, second, both).item() == pytest.approx(log(3) / 4, abs=1e-12)
    assert relation_divergence(first, second, one).item() == 0
    assert relation_divergence(torch.zeros(2, 2), second, one ^ both).isfinite()


def published(received: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The divergence as the authors' code has it: absent classes have a uniform row."""
    rows = []
    for label in range(CLASSES):
        chosen = [row for row, own in zip(logits, labels, strict=True) if own == label]
        mean = sum(chosen) / len(chosen) if chosen else torch.zeros(CLASSES, dtype=torch.float64)
        rows.append((mean / 2).softmax(dim=0))
    total = torch.zeros((), dtype=torch.float64)
    for row, other in zip(rows, received, strict=True):
        for p, q in zip(row, other, strict=True):
            total = total + p * (p.log() - q.log()) + q * (q.log() - p.log())
    return total / 2 / CLASSES


@pytest.mark.parametrize("labels", [[0, 1, 2, 2, 0], [1, 1, 1, 1, 1], [2, 0, 0, 2, 0]])
def test_the_gradient_is_that_of_the_authors_rule_and_the_loss_its_own_where_no_class_is_absent(
    labels: list[int],
) -> None:
    received, logits = drawn(CLASSES, CLASSES, seed=1).softmax(dim=1), drawn(5, CLASSES).requires_grad_()
    own = torch.tensor(labels)

    def mine(rows: Tensor) -> Tensor:
        sums, counts = class_sums(rows, own, rows.shape[1])
        return relation_divergence(received, relation_rows(sums, counts, 2.0), counts > 0)

    theirs = published(received, logits, own)
    torch.testing.assert_close(torch.autograd.grad(mine(logits), logits), torch.autograd.grad(theirs, logits))
    assert torch.autograd.gradcheck(mine, logits)
    if len(set(labels)) == CLASSES:
        assert mine(logits).item() == pytest.approx(theirs.item(), abs=1e-9)


# The objective


def test_pseudo_labels_pass_by_probability_and_by_entropy() -> None:
    logits = torch.tensor([[0, 0, 0], [log(2), 0, 0], [log(8), 0, 0]], dtype=torch.float64)  # 1/3, 1/2 and 4/5
    assert FedIRM(threshold=0.5).kept(logits)[0].tolist() == [False, True, True]
    assert FedIRM(threshold=0.51).kept(logits)[0].tolist() == [False, False, True]
    # entropies of log 3, 3/2 log 2 and 0.8 log 5/4 + 0.2 log 10, of log 3 the shares 1, 0.946 and 0.582
    assert FedIRM(max_entropy=0.95).kept(logits)[0].tolist() == [False, True, True]
    assert FedIRM(max_entropy=0.94).kept(logits)[0].tolist() == [False, False, True]
    assert FedIRM(max_entropy=0.58).kept(logits)[0].tolist() == [False, False, False]
    assert FedIRM().kept(drawn(50, 7) / 10)[0].sum() > 40  # of 7 classes the published filters pass nearly everything


def batches(*logits: Tensor, labels: list[int]) -> Batch:
    return batch_of(*(rows[:, :, None, None, None] for rows in logits), labels=torch.tensor(labels))


class Pixels(nn.Module):
    """An encoder whose feature is the clip."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def forward(self, views: Tensor) -> Tensor:
        return views.flatten(1)


def model_of(objective: FedIRM) -> nn.ModuleDict:
    """A model whose logits are the pixels of a clip, with the relation matrix of rows (1/2, 1/4, 1/4)."""
    encoder = Pixels(CLASSES)
    model = nn.ModuleDict({"backbone": encoder, **objective.build(encoder, Population(9, CLASSES))}).double()
    with torch.no_grad():
        model["classifier"].weight.copy_(torch.eye(CLASSES))
        model["classifier"].bias.zero_()
        model["relations"].received.copy_((torch.ones(CLASSES, CLASSES) + torch.eye(CLASSES)) / 4)
        model["relations"].known.fill_(True)
    objective.begin_round(model, first=True)
    return model


def test_the_loss_is_the_distance_to_the_teacher_and_the_divergence_of_relations() -> None:
    # one example of logits (2 log 2, 0, 0), taken for class 0: its row is (1/2, 1/4, 1/4), as the federation's
    student = torch.tensor([[2 * log(2), 0, 0]], dtype=torch.float64)
    model = model_of(OBJECTIVE)
    assert OBJECTIVE.step(model, batches(student, student, labels=[UNKNOWN])).loss.item() == pytest.approx(0, abs=1e-12)
    # the other way round (4 log 2, 0, 0) has the row (2/3, 1/6, 1/6)
    sharper = 2 * student
    divergence = (1 / 6 * log(4 / 3) - 2 * 1 / 12 * log(2 / 3)) / 2 / 3
    expected = 15 * divergence
    step = OBJECTIVE.step(model, batches(sharper, sharper, labels=[UNKNOWN]))
    assert step.loss.item() == pytest.approx(expected, abs=1e-9)
    # a teacher that sees (0, 0, 0) says 1/3 each; the student of (2 log 2, 0, 0) says 2/3, 1/6, 1/6
    step = OBJECTIVE.step(model, batches(torch.zeros_like(student), student, labels=[UNKNOWN]))
    assert step.loss.item() == pytest.approx(15 * (1 / 9 + 2 / 36), abs=1e-9)
    # until any row is known the distance is all
    model["relations"].known.fill_(False)
    assert OBJECTIVE.step(model, batches(sharper, sharper, labels=[UNKNOWN])).loss.item() == pytest.approx(0, abs=1e-12)


def test_nothing_that_passes_the_filters_leaves_the_distance() -> None:
    objective = FedIRM(ramp=0.0, threshold=1.0)
    rows = drawn(4, CLASSES)
    step = objective.step(model_of(objective), batches(rows, rows, labels=[UNKNOWN] * 4))
    assert step.loss.item() == pytest.approx(0, abs=1e-12)
    assert step.pseudo_labels is not None
    assert not step.pseudo_labels.accepted.any()
    step.loss.backward()


def test_the_distance_of_probabilities_is_bounded_and_that_of_logits_is_not() -> None:
    def loss(objective: FedIRM, size: float) -> float:
        rows = torch.tensor([[size, 0, 0]], dtype=torch.float64)
        model = model_of(objective)
        model["relations"].known.fill_(False)
        return objective.step(model, batches(torch.zeros_like(rows), rows, labels=[UNKNOWN])).loss.item()

    compat = FedIRM(ramp=0.0, reference_compat=True)
    assert [loss(compat, size) for size in (1, 10, 100)] == pytest.approx([15, 1500, 150000])
    assert loss(OBJECTIVE, 100) == pytest.approx(15 * (4 / 9 + 2 / 9))  # from 1/3 each to one class
    assert max(loss(OBJECTIVE, size) for size in (1, 10, 1000)) <= 15 * 2


def test_a_labelled_step_is_cross_entropy_and_its_logits_become_the_own_matrix_until_the_next_round() -> None:
    model = model_of(OBJECTIVE)
    first, second = torch.tensor([[4 * log(3), 0, 0], [0, 0, 0]]).double(), torch.tensor([[0, 0, 0]]).double()
    step = OBJECTIVE.step(model, batches(first, first, labels=[0, 0]))
    assert step.loss.item() == pytest.approx((log(1 + 2 / 81) + log(3)) / 2)
    OBJECTIVE.step(model, batches(second, second, labels=[2]))
    rows, present = OBJECTIVE.own(model)
    assert present.tolist() == [True, False, True]
    assert rows[0].tolist() == pytest.approx([3 / 5, 1 / 5, 1 / 5], abs=1e-6)
    assert rows[1].tolist() == [0, 0, 0]
    assert rows[2].tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)
    OBJECTIVE.begin_round(model, first=False)
    assert not OBJECTIVE.own(model)[1].any()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("relation_temperature", 0.0, "above 0"),
        ("threshold", 1.5, "between 0 and 1"),
        ("max_entropy", 0.0, "above 0"),
        ("max_entropy", 1.5, "between 0 and 1"),
        ("weight", -1.0, "0 or more"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: float, text: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be {text}, got {value}"):
        FedIRM(**{name: value})


# Clients and the server


def examples(labels: list[int]) -> Examples:
    pixels = np.random.default_rng(len(set(labels))).integers(0, 256, (len(labels), 1, 2, 2, 1), np.uint8)
    dataset = ArrayDataset(np.zeros(len(labels), np.int64), ("a", "b", "c"), ("",) * len(labels), pixels)
    return Examples(dataset, np.arange(len(labels)), ClipAugmentation(2, 2), np.array(labels))


def client(task: TrainTask, labels: list[int], partition: int) -> tuple[LocalUpdate, nn.ModuleDict]:
    encoder = Pixels(4)
    model = nn.ModuleDict({"backbone": encoder, **OBJECTIVE.build(encoder, Population(9, CLASSES))})
    bundle.load(model, TRAINING.begin(bundle.arrays(model, None), None, task))
    outcome = TRAINING.train(Work(model, OBJECTIVE, examples(labels), task, partition))
    arrays = bundle.arrays(model, ["classifier"])
    return LocalUpdate(partition, task.round, arrays, len(labels), outcome.metrics, outcome.sent), model


def test_the_federations_matrix_is_the_plain_mean_over_the_clients_that_have_a_class() -> None:
    server = ClassMeans(weights="equal", width="classes")
    plan = Plan(rounds=3, seed=0, num_clients=3, cohort=None, quorum=1)
    current = {"classifier.weight": np.zeros((CLASSES, 4), np.float32), "classifier.bias": np.zeros(3, np.float32)}
    task = server.task(current, 1, plan)
    updates = [
        client(task, labels, partition)[0]
        for partition, labels in enumerate(([0, 0, 1, 0, 0], [1, UNKNOWN, UNKNOWN, 1], [UNKNOWN] * 4))
    ]
    sent = [update.extras["classes"] for update in updates]
    assert [rows["counts"].tolist() for rows in sent] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert {array.dtype for rows in sent for array in rows.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(sent[0]["sums"].sum(axis=1), [1, 1, 0], atol=1e-6)
    merged = server.merge(current, iter(updates), 1)
    weights = [update.arrays["classifier.weight"] for update in updates]
    np.testing.assert_allclose(merged["classifier.weight"], np.mean(weights, axis=0), atol=1e-7)
    came = server.task(merged, 2, plan).extras["classes"]
    assert came["counts"].tolist() == [1, 2, 0]
    np.testing.assert_allclose(came["means"][0], sent[0]["sums"][0], atol=1e-7)
    np.testing.assert_allclose(came["means"][1], (sent[0]["sums"][1] + sent[1]["sums"][1]) / 2, atol=1e-7)
    _, model = client(server.task(merged, 2, plan), [UNKNOWN] * 4, 2)
    np.testing.assert_array_equal(model["relations"].received.numpy(), came["means"])
    assert model["relations"].known.tolist() == [True, True, False]


def test_what_does_not_go_together_is_refused_by_name() -> None:
    task = TrainTask(1, 1, 0, {})
    with pytest.raises(ValueError, match="client=fedirm needs strategy=fedirm: the server sent no relation matrix"):
        TRAINING.train(Work(nn.ModuleDict(), OBJECTIVE, examples([0]), task, 0))
    with pytest.raises(ValueError, match="client=fedirm needs objective=fedirm, got MeanTeacher"):
        TRAINING.train(Work(nn.ModuleDict(), MeanTeacher(), examples([0]), task, 0))
