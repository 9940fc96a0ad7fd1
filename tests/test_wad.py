"""WAD: weights by distances to prototypes, a teacher that never moves, and labels that are kept."""

import json
from dataclasses import replace
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from test_resume import interrupt_after
from torch import Tensor, nn

from clients.local_training import Work
from clients.wad import WadTraining, num_promoted, surest
from fedssl.compose import load
from fedssl.config import build
from fedssl.data.arrays import ArrayDataset
from fedssl.memory import Memory
from fedssl.models import bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.objective import UNKNOWN, Population
from fedssl.objectives.pseudo_labels import RULE, Seen, Targets
from fedssl.objectives.semi_supervised import SemiSupervised, weighted_cross_entropy
from fedssl.objectives.supervised import Supervised, class_sums
from fedssl.objectives.wad import Prototypes, Wad, nearest
from fedssl.seeding import torch_stream
from fedssl.training.augment import ClipAugmentation
from fedssl.training.loop import Examples
from fedssl.wire import TrainTask
from simulate import main

CLASSES = 3
ALL = torch.ones(CLASSES, dtype=torch.bool)
EYE = torch.eye(CLASSES, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def encoder(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return small_resnet(in_channels=1, width=4)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """The file of an encoder that is not the one that trains."""
    arrays = {name: tensor.numpy() for name, tensor in encoder(seed=5).state_dict().items()}
    save_file(arrays, tmp_path / "encoder.safetensors")
    return str(tmp_path / "encoder.safetensors")


def made(teacher: str) -> tuple[SemiSupervised, nn.ModuleDict]:
    objective = SemiSupervised(Wad(teacher), view="light")
    model = bundle.build_bundle(encoder, objective, seed=0, population=Population(6, CLASSES))
    objective.begin_round(model, first=True)
    return objective, model


# Weights


def test_the_weight_is_the_distance_of_the_two_greatest_cosines() -> None:
    features = torch.tensor([[5.0, 0, 0], [1, 1, 1], [0, 3, 4], [1, 1, 0]], dtype=torch.float64)
    targets = nearest(features, 7 * EYE, ALL)
    expected = torch.tensor([1, 0, 4 / 5 - 3 / 5, 0], dtype=torch.float64)
    torch.testing.assert_close(targets.weights, expected, atol=1e-9, rtol=0)
    assert targets.labels[0] == 0
    assert targets.labels[2] == 2


def test_labels_and_weights_are_those_of_a_slow_loop() -> None:
    features, prototypes = drawn(7, 5), drawn(CLASSES, 5, seed=1)
    targets = nearest(features, prototypes, ALL)
    for row, label, weight in zip(features, targets.labels.tolist(), targets.weights.tolist(), strict=True):
        cosines = [
            sum(float(a) * float(b) for a, b in zip(row, prototype, strict=True))
            / sqrt(sum(float(a) ** 2 for a in row) * sum(float(b) ** 2 for b in prototype))
            for prototype in prototypes
        ]
        assert label == cosines.index(max(cosines))
        ordered = sorted(cosines)
        assert weight == pytest.approx(min(1.0, ordered[-1] - ordered[-2]), abs=1e-9)


def test_opposite_prototypes_weigh_no_more_than_one() -> None:
    poles = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    assert nearest(poles, poles, ALL[:2]).weights.tolist() == [1, 1]


@pytest.mark.parametrize("known", [[], [1]])
def test_with_fewer_than_two_prototypes_nothing_counts_and_nothing_is_nan(known: list[int]) -> None:
    mask = torch.zeros(CLASSES, dtype=torch.bool)
    mask[known] = True
    targets = nearest(torch.cat((EYE, torch.zeros(1, 3))), EYE * mask[:, None], mask)
    assert targets.weights.tolist() == [0] * 4
    assert set(targets.labels.tolist()) <= set(range(CLASSES))


def test_a_class_without_prototype_is_nobodys() -> None:
    mask = torch.tensor([True, False, True])
    assert nearest(torch.tensor([[-1.0, 0, -2]]), EYE.float() * mask[:, None], mask).labels.tolist() == [0]


def test_examples_of_weight_0_leave_no_gradient_and_can_be_dropped() -> None:
    targets = nearest(torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 3, 4]], dtype=torch.float64), EYE, ALL)
    logits = drawn(3, CLASSES).requires_grad_()
    gradient = torch.autograd.grad(3 * weighted_cross_entropy(logits, targets), logits)[0]
    some = [0, 2]
    dropped = Targets(targets.labels[some], targets.weights[some])
    expected = torch.autograd.grad(2 * weighted_cross_entropy(logits[some], dropped), logits)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=0)
    assert gradient[1].tolist() == [0, 0, 0]
    assert torch.autograd.gradcheck(lambda rows: weighted_cross_entropy(rows, targets), logits)


# Prototypes


def test_sums_of_classes_are_those_of_a_slow_loop() -> None:
    features, labels = drawn(8, 4), torch.tensor([2, 0, 0, 2, 2, 0, 2, 2])
    sums, counts = class_sums(features, labels, CLASSES)
    assert counts.tolist() == [3, 0, 5]
    expected = torch.zeros(CLASSES, 4, dtype=torch.float64)
    for row, label in zip(features, labels, strict=True):
        expected[label] += row
    torch.testing.assert_close(sums, expected, atol=1e-9, rtol=0)


def test_a_prototype_is_the_mean_over_batches_and_that_of_the_federation_where_it_has_one(teacher: str) -> None:
    prototypes = Prototypes(encoder(), CLASSES).double()
    features, labels = nn.functional.normalize(drawn(9, prototypes.teacher.feature_dim)), torch.tensor([0, 2, 2] * 3)
    for rows in (slice(0, 4), slice(4, 9)):
        prototypes.learn(features[rows], labels[rows])
    means, known = prototypes.of_classes()
    torch.testing.assert_close(means[0], features[labels == 0].mean(dim=0), atol=1e-9, rtol=0)
    torch.testing.assert_close(means[2], features[labels == 2].mean(dim=0), atol=1e-9, rtol=0)
    assert known.tolist() == [True, False, True]
    prototypes.shared_means[1:] += 3.0
    prototypes.shared_counts[:] = torch.tensor([0.0, 5, 5])
    means, known = prototypes.of_classes()
    assert known.all()
    torch.testing.assert_close(means[0], features[labels == 0].mean(dim=0), atol=1e-9, rtol=0)
    assert (means[1:] == 3.0).all()


# The teacher


def test_the_teacher_is_the_file_and_never_moves_nor_trains(teacher: str) -> None:
    objective, model = made(teacher)
    model.train()
    prototypes = model[RULE]
    assert prototypes.training
    assert not any(module.training for module in prototypes.teacher.modules())
    assert not any(parameter.requires_grad for parameter in prototypes.parameters())
    before = {name: tensor.clone() for name, tensor in prototypes.teacher.state_dict().items()}
    expected = encoder(seed=5).state_dict()
    views = torch.rand(4, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = Seen(views, torch.zeros(4, 1), torch.zeros(4, CLASSES), torch.arange(4))
    objective.rule.learn(prototypes, seen, torch.tensor([0, 1, 2, 0]))
    targets = objective.rule.targets(prototypes, seen)
    for name, tensor in prototypes.teacher.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(tensor, expected[name])
    assert targets.labels.tolist()[1:3] == [1, 2]  # each the only one of its class
    assert not targets.weights.requires_grad
    assert objective.contract.private_groups == {RULE}


def test_a_file_that_does_not_fit_is_refused_by_name(teacher: str, tmp_path: Path) -> None:
    def reason(path: str, width: int = 4) -> str:
        with pytest.raises(ValueError, match=f"^rule.teacher must be the file of an encoder .*, got {path}$") as caught:
            Wad(path).build(small_resnet(in_channels=1, width=width), Population(6, CLASSES))
        return str(caught.value)

    assert "No such file" in reason(str(tmp_path / "none"))
    assert "must have shape" in reason(teacher, width=8)
    (tmp_path / "text").write_text("no encoder")
    assert "cannot be read" in reason(str(tmp_path / "text"))
    arrays = {name: tensor.numpy() for name, tensor in encoder().state_dict().items()}
    name = sorted(arrays)[0]
    save_file({key: value for key, value in arrays.items() if key != name}, tmp_path / "less")
    assert f"{name} is missing" in reason(str(tmp_path / "less"))


# Promotion


def test_the_number_of_promoted_examples_falls_to_0() -> None:
    numbers = [num_promoted(1000, 0.1, part, 5) for part in range(6)]
    assert numbers == [100, 64, 36, 16, 4, 0]
    assert num_promoted(9, 0.1, 0, 5) == 0
    assert num_promoted(0, 1.0, 0, 5) == 0


def test_those_with_the_least_cross_entropy_are_promoted_and_none_of_weight_0() -> None:
    logits = torch.tensor([[3.0, 0, 0], [0, 9, 0], [0, 0, 1], [0, 5, 0]])
    targets = Targets(torch.tensor([0, 1, 2, 0]), torch.tensor([0.2, 0.0, 0.3, 0.4]))
    assert surest(logits, targets, 1).tolist() == [0]
    assert surest(logits, targets, 2).tolist() == [0, 2]
    assert surest(logits, targets, 4).tolist() == [0, 2, 3]  # the second is sure, of a label that means nothing


# The client


def examples(labels: list[int]) -> Examples:
    number = len(labels)
    pixels = np.random.default_rng(0).integers(0, 256, (number, 1, 8, 8, 1), np.uint8)
    dataset = ArrayDataset(np.zeros(number, np.int64), ("a", "b", "c"), ("",) * number, pixels)
    return Examples(dataset, np.arange(number), ClipAugmentation(8, 8), np.array(labels))


def asked(model: nn.ModuleDict, round_number: int = 1, num_rounds: int = 2, count: float = 0.0) -> TrainTask:
    """Return a task with random prototypes of `count` examples each."""
    means = drawn(*model[RULE].means.shape, seed=3).float().numpy()
    extras = {"classes": {"means": means * (count > 0), "counts": np.full(CLASSES, count, np.float32)}}
    arrays = bundle.arrays(model, ["backbone", "classifier"])
    return TrainTask(round_number, num_rounds, 0, arrays, extras=extras)


TRAINING = WadTraining(partial(torch.optim.SGD, lr=0.01), batch_size=4, share=1.0, promotions=2)


def test_a_client_sends_the_sums_of_its_labelled_examples_as_the_teacher_sees_them(teacher: str) -> None:
    objective, model = made(teacher)
    held = examples([0, UNKNOWN, 2, 0, UNKNOWN, 0])
    outcome = replace(TRAINING, share=0.0).train(Work(model, objective, held, asked(model), 0))
    sent, frozen = outcome.sent["classes"], encoder(seed=5).eval()
    assert (sent["sums"].dtype, sent["counts"].dtype) == (np.float32, np.float32)
    assert sent["counts"].tolist() == [3, 0, 1]
    expected = torch.zeros(CLASSES, frozen.feature_dim)
    with torch.no_grad():
        for index, label in ((0, 0), (2, 2), (3, 0), (5, 0)):
            view = torch.from_numpy(held.dataset.read(index)).permute(3, 0, 1, 2)[None].float() / 255
            expected[label] += nn.functional.normalize(frozen(view))[0]
    torch.testing.assert_close(torch.from_numpy(sent["sums"]), expected, atol=1e-5, rtol=0)
    assert outcome.metrics["promoted"] == 0


def test_a_client_without_labels_learns_from_prototypes_that_came_and_sends_none(teacher: str) -> None:
    objective, model = made(teacher)
    held = examples([UNKNOWN] * 6)
    nothing = replace(TRAINING, share=0.0).train(Work(model, objective, held, asked(model), 0))
    assert nothing.metrics["loss"] == 0
    assert nothing.metrics["pseudo-label coverage"] == 0
    outcome = replace(TRAINING, share=0.0).train(Work(model, objective, held, asked(model, count=5.0), 0))
    assert outcome.metrics["loss"] > 0
    assert outcome.metrics["pseudo-label coverage"] == 1
    assert outcome.sent["classes"]["counts"].tolist() == [0, 0, 0]
    assert not outcome.sent["classes"]["sums"].any()


def test_promoted_examples_keep_the_teachers_label_train_as_labelled_and_count(
    teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, model = made(teacher)
    held = examples([1, *[UNKNOWN] * 8])
    first = TRAINING.train(Work(model, objective, held, asked(model, 1, 2, count=5.0), 0))
    kept = first.kept["promoted"]
    new = kept["labels"]
    assert (new != UNKNOWN).sum() == 2  # (1 - 1/2)^2 of 8
    assert new[0] == UNKNOWN  # its label is known
    assert first.metrics["promoted"] == pytest.approx(2 / 9)
    assert first.sent["classes"]["counts"].sum() == 3
    judged = model[RULE].judge(model[RULE].features(clean(held)))
    assert all(new[place] == judged.labels[place] for place in np.flatnonzero(new != UNKNOWN))
    learned: dict[int, int] = {}

    def learn(self: Wad, state: nn.Module, labelled: Seen, labels: Tensor) -> None:
        learned.update(zip(labelled.places.tolist(), labels.tolist(), strict=True))

    monkeypatch.setattr(Wad, "learn", learn)
    second = TRAINING.train(Work(model, objective, held, asked(model, 2, 2, count=5.0), 0, Memory(extras=first.kept)))
    assert learned == {0: 1, **{int(place): int(new[place]) for place in np.flatnonzero(new != UNKNOWN)}}
    assert np.array_equal(second.kept["promoted"]["labels"], new)  # the last part promotes none
    assert held.labels is not None
    assert held.labels.tolist() == [1, *[UNKNOWN] * 8]


def clean(held: Examples) -> Tensor:
    pixels = [torch.from_numpy(held.dataset.read(int(index))) for index in held.indices]
    return torch.stack(pixels).permute(0, 4, 1, 2, 3).float() / 255


def test_a_part_is_promoted_once_and_by_a_client_that_was_away_when_it_is_back(teacher: str) -> None:
    objective, model = made(teacher)
    training, memory = replace(TRAINING, share=0.5, promotions=4), None
    counts = []
    for number in (1, 3, 4, 5, 8):  # parts end with rounds 2, 4, 6 and 8
        outcome = training.train(
            Work(model, objective, examples([UNKNOWN] * 16), asked(model, number, 8, 5.0), 0, memory)
        )
        memory = Memory(extras=outcome.kept)
        counts.append(int((outcome.kept["promoted"]["labels"] != UNKNOWN).sum()))
    # part 1 in round 3: 1/2 * (3/4)^2 of 16; part 2 in round 4: 1/2 * (1/2)^2 of 12; part 4 in round 8: none
    assert counts == [0, 4, 5, 5, 5]


def test_what_does_not_go_together_is_refused_by_name(teacher: str) -> None:
    objective, model = made(teacher)
    with pytest.raises(ValueError, match="client=wad needs objective=wad, got Supervised"):
        TRAINING.train(Work(model, Supervised(), examples([0] * 4), asked(model), 0))
    with pytest.raises(ValueError, match="the server sends no means of classes; choose strategy=class_means"):
        TRAINING.train(Work(model, objective, examples([0] * 4), replace(asked(model), extras={}), 0))
    other = {"classes": {"means": np.zeros((CLASSES, 2), np.float32), "counts": np.zeros(CLASSES, np.float32)}}
    with pytest.raises(ValueError, match=r"rule\.shared_means must have shape"):
        TRAINING.train(Work(model, objective, examples([0] * 4), replace(asked(model), extras=other), 0))


@pytest.mark.parametrize(("name", "value"), [("share", 1.5), ("promotions", 0)])
def test_a_bad_setting_of_the_client_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        replace(TRAINING, **{name: value})


# Runs

RUN = [
    "experiment=quickstart_images", "engine=local", "rounds=4", "model.width=4", "client.epochs=1",
    "labels=partial_client", "labels.num_labelled=2", "evaluation=none", "labelled_rounds=1",
    "objective=wad", "client=wad", "strategy=class_means", "client.share=0.5", "client.promotions=2",
    "objective.rule.teacher=none",
]  # fmt: skip


def test_the_configuration_takes_the_encoder_that_the_run_begins_with_unless_it_names_another() -> None:
    assert build(load("objective=wad init=some.safetensors"), "objective").rule.teacher == "some.safetensors"
    named = load("objective=wad objective.rule.teacher=other.safetensors")
    assert build(named, "objective").rule.teacher == "other.safetensors"


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch_stream(5, "teacher"):
        arrays = {name: tensor.numpy() for name, tensor in build(load(RUN), "model").state_dict().items()}
    save_file(arrays, tmp_path / "teacher.safetensors")
    words = [*RUN, f"objective.rule.teacher={tmp_path / 'teacher.safetensors'}"]
    assert main([*words, f"run_dir={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        assert main([*words, f"run_dir={tmp_path / 'cut'}", "checkpoint.every=1"]) == 3
    assert main([*words, f"run_dir={tmp_path / 'cut'}", "resume=auto"]) == 0
    whole, cut = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "cut"))
    assert cut["model_sha256"] == whole["model_sha256"]
    rounds = [json.loads(line) for line in (tmp_path / "whole" / "rounds.jsonl").read_text().splitlines()]
    assert len(rounds[0]["clients"]) == 2  # those with labels, who make the first prototypes
    assert rounds[1]["metrics"]["pseudo-label coverage"] > 0.9
    assert rounds[2]["metrics"]["promoted"] > 0
