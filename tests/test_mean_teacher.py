"""The mean teacher: its answers, its mean, and the loss of batches of either kind."""

from math import exp, log

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.models.encoder import Encoder
from fedssl.objectives.mean_teacher import MeanTeacher, ramped, sharpened, squared_distance
from fedssl.objectives.objective import UNKNOWN, Batch, Population
from fedssl.objectives.supervised import Supervised

CLASSES, DIM = 3, 4
MIXED = torch.tensor([1, UNKNOWN, 0, UNKNOWN, UNKNOWN])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def model(objective: MeanTeacher) -> nn.ModuleDict:
    """A linear classifier of examples that are features already, with a teacher that has moved away."""
    encoder = Encoder(nn.Conv3d(DIM, DIM, 1), DIM)
    bundle = nn.ModuleDict({"backbone": encoder, **objective.build(encoder, Population(9, CLASSES))}).double()
    objective.begin_round(bundle, first=True)
    with torch.no_grad():
        for seed, parameter in enumerate(bundle.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=seed))
    return bundle


def batch(labels: Tensor = MIXED) -> Batch:
    return batch_of(*drawn(2, len(labels), DIM, 1, 1, 1, seed=9), labels=labels)


def answers(groups: nn.ModuleDict, views: Tensor) -> Tensor:
    logits: Tensor = groups["classifier"](groups["backbone"](views))
    return logits


# The loss


def test_a_temperature_of_one_half_squares_probabilities() -> None:
    logits = torch.tensor([[log(4), 0.0]], dtype=torch.float64)  # 4/5 and 1/5
    assert sharpened(logits, 0.5)[0].tolist() == pytest.approx([16 / 17, 1 / 17], abs=1e-12)
    assert sharpened(logits, 1.0)[0].tolist() == pytest.approx([0.8, 0.2], abs=1e-12)


def test_distributions_are_at_most_2_apart() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert squared_distance(eye, eye.roll(1, 0)).item() == 2
    assert squared_distance(eye, eye).item() == 0
    assert squared_distance(eye, torch.full_like(eye, 0.25)).item() == pytest.approx(0.75)  # 9/16 + 3 * 1/16


@pytest.mark.parametrize("labels", [MIXED, torch.tensor([2, 0, 1]), torch.full((3,), UNKNOWN)])
def test_the_loss_is_that_of_a_slow_loop(labels: Tensor) -> None:
    objective = MeanTeacher(weight=0.7)
    bundle, some = model(objective), batch(labels)
    known, unknown = [], []
    for place, label in enumerate(labels.tolist()):
        first, second = (view[place : place + 1] for view in some.views)
        if label == UNKNOWN:
            student = [exp(value) for value in answers(bundle, second)[0].tolist()]
            squares = [exp(value) ** 2 for value in answers(bundle["teacher"], first)[0].tolist()]
            pairs = zip(student, squares, strict=True)
            unknown.append(sum((p / sum(student) - q / sum(squares)) ** 2 for p, q in pairs))
        else:
            known.append(-F.log_softmax(answers(bundle, first), dim=1)[0, label].item())
    supervised = sum(known) / len(known) if known else 0
    unsupervised = 0.7 * sum(unknown) / len(unknown) if unknown else 0
    step = objective.step(bundle, some)
    assert step.loss.item() == pytest.approx(supervised + unsupervised, abs=1e-9)
    assert (step.terms is None) == (not known or not unknown)
    if step.terms is not None:
        assert [term.item() for term in step.terms] == pytest.approx([supervised, unsupervised], abs=1e-9)


def test_with_labels_alone_it_is_supervised_learning() -> None:
    labels = torch.tensor([2, 0, 1])
    objective = MeanTeacher()
    bundle = model(objective)
    mine, plain = objective.step(bundle, batch(labels)), Supervised().step(bundle, batch(labels))
    assert mine.loss.item() == pytest.approx(plain.loss.item(), abs=1e-12)
    assert mine.pseudo_labels is None
    assert mine.metrics["accuracy"] == plain.metrics["accuracy"]


def test_a_student_that_answers_as_its_sharpened_teacher_learns_nothing_and_no_gradient_reaches_the_teacher() -> None:
    objective = MeanTeacher(temperature=1.0)
    bundle = model(objective)
    objective.begin_round(bundle, first=True)
    same = batch(torch.full((3,), UNKNOWN))
    step = objective.step(bundle, Batch((same.views[0],) * 2, same.targets, same.places, same.uniforms, same.labels))
    assert step.loss.item() == pytest.approx(0, abs=1e-24)
    objective.step(bundle, same).loss.backward()
    moved = {name.split(".")[0] for name, parameter in bundle.named_parameters() if parameter.grad is not None}
    assert moved == {"backbone", "classifier"}


def test_the_gradient_is_right() -> None:
    teacher = sharpened(drawn(4, CLASSES, seed=1), 0.5)
    assert torch.autograd.gradcheck(
        lambda logits: squared_distance(logits.softmax(dim=1), teacher), drawn(4, CLASSES).requires_grad_()
    )


def test_unlabelled_examples_are_taken_for_what_the_teacher_says() -> None:
    objective = MeanTeacher()
    bundle, some = model(objective), batch()
    taken = objective.step(bundle, some).pseudo_labels
    assert taken is not None
    assert taken.places.tolist() == [1, 3, 4]
    assert taken.labels.tolist() == answers(bundle["teacher"], some.views[0])[[1, 3, 4]].argmax(dim=1).tolist()
    assert taken.accepted.all()


# The teacher


def followed(objective: MeanTeacher, bundle: nn.ModuleDict, values: list[float]) -> list[float]:
    """Return the teacher's bias after steps that led the network's to `values`."""
    seen = []
    for value in values:
        nn.init.constant_(bundle["classifier"].bias, value)
        objective.after_step(bundle, 0.5)
        seen.append(bundle["teacher"]["classifier"].bias[0].item())
    return seen


def test_a_teacher_is_the_plain_mean_until_its_momentum_reaches_the_limit() -> None:
    # momentum 0, 1/2, 2/3, then 0.7 where 3/4 would come: 0.7 * 2 + 0.3 * 12 = 5
    objective = MeanTeacher(momentum=0.7)
    assert followed(objective, model(objective), [0, 3, 3, 12]) == pytest.approx([0, 1.5, 2, 5], abs=1e-12)


def test_the_mean_goes_on_over_rounds_and_a_new_client_begins_with_a_copy() -> None:
    objective = MeanTeacher()
    bundle = model(objective)
    followed(objective, bundle, [0, 3])
    nn.init.constant_(bundle["classifier"].bias, 9)  # what a new round brings
    objective.begin_round(bundle, first=False)
    assert bundle["teacher"]["classifier"].bias[0].item() == pytest.approx(1.5)
    assert followed(objective, bundle, [3]) == pytest.approx([2])  # 2/3 and 1/3
    objective.begin_round(bundle, first=True)
    assert torch.equal(bundle["teacher"]["backbone"].body.weight, bundle["backbone"].body.weight)


# The ramp


def test_the_ramp_is_a_half_of_a_bell() -> None:
    assert [ramped(done) for done in (0, 0.5, 1, 7)] == pytest.approx([exp(-5), exp(-1.25), 1, 1])


def test_the_weight_rises_with_the_run() -> None:
    objective, some = MeanTeacher(weight=2.0, ramp=0.4), batch()
    bundle = model(objective)
    weights = []
    for progress in (0.2, 0.4, 0.9):
        terms, distance = objective.step(bundle, some).terms, objective.step(bundle, some).metrics["unsupervised-loss"]
        assert terms is not None
        weights.append(terms[1].item() / distance)
        bundle["progress"].done.fill_(progress)
    assert weights == pytest.approx([2 * exp(-5), 2 * exp(-1.25), 2])
    objective.after_step(bundle, 0.3)
    assert bundle["progress"].done.item() == pytest.approx(0.3)
    assert {"progress", "teacher", "steps"} == objective.contract.private_groups
    assert MeanTeacher().contract.private_groups == {"teacher", "steps"}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("weight", -1.0, "0 or more"),
        ("ramp", 1.5, "between 0 and 1"),
        ("temperature", 0.0, "above 0"),
        ("momentum", 1.5, "between 0 and 1"),
        ("unlabelled_ratio", 0, "at least 1"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: float, text: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be {text}, got {value}"):
        MeanTeacher(**{name: value})
