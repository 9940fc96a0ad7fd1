import dataclasses
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from batches import batch_of
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.models.bundle import build_bundle
from fedssl.models.encoder import Encoder
from fedssl.models.image import small_resnet
from fedssl.objectives.barlow_twins import BarlowTwins
from fedssl.objectives.byol import Byol
from fedssl.objectives.moco import MoCo
from fedssl.objectives.nt_xent import nt_xent
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.objectives.pseudo_labels import RULE, Rule, Seen, Targets
from fedssl.objectives.simclr import SimClr
from fedssl.objectives.simsiam import SimSiam
from fedssl.objectives.supervised import Supervised
from fedssl.objectives.threshold_rules import FixedThreshold, FlexMatch
from fedssl.objectives.twin_sight import Defect, TwinSight
from fedssl.privacy.contract import PrivacyContract
from fedssl.training.diagnostics import gradient_angle
from fedssl.training.image_augment import ImageAugmentation
from fedssl.training.image_view import ImageView

CLASSES = 3
LABELS = torch.tensor([0, 2, 1, 0])
UNLABELLED = torch.full((4,), -1)
MIXED = torch.tensor([0, 2, -1, -1])
EVERYTHING = FixedThreshold(0.0)
NOTHING = FixedThreshold(1.0)


def batch(labels: Tensor = LABELS) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return batch_of(*torch.rand(2, len(labels), 1, 1, 8, 8, dtype=torch.float64, generator=generator), labels=labels)


def simclr() -> SimClr:
    return SimClr(0.07, hidden=8, dim=4)


def make_encoder() -> Encoder:
    return small_resnet(1, width=4, norm="group")


def bundle(objective: Objective, encoder: Callable[[], Encoder] = make_encoder) -> nn.ModuleDict:
    return build_bundle(encoder, objective, 0, Population(8, CLASSES)).double()


def parts(model: nn.ModuleDict, what: Batch) -> dict[str, Tensor]:
    """Return each part of the published loss, slowly: each network sees each view of each example by itself."""
    twin = cast(nn.ModuleDict, model["twin"])

    def passed(network: nn.Module, view: int) -> Tensor:
        return torch.cat([network(image[None]) for image in what.views[view]])

    weak, strong = passed(model["backbone"], 0), passed(model["backbone"], 1)
    seen, other = passed(twin["backbone"], 0), passed(twin["backbone"], 1)
    known = what.labelled
    difference = torch.zeros(())
    for i in range(len(known)):
        for j in range(len(known)):
            pair = [F.cosine_similarity(rows[i], rows[j], dim=0) for rows in (seen, weak)]
            difference = difference + (pair[0] - pair[1]) ** 2 / len(known) ** 2
    cross = [-model["classifier"](row).log_softmax(dim=0)[label] for row, label in zip(weak, what.labels, strict=True)]
    guesses = [model["classifier"](row).argmax() for row in weak]
    swapped = [model["classifier"](row).argmax() for row in strong]
    pseudo = [-model["classifier"](row).log_softmax(dim=0)[guess] for row, guess in zip(strong, guesses, strict=True)]
    reverse = [-model["classifier"](row).log_softmax(dim=0)[guess] for row, guess in zip(weak, swapped, strict=True)]

    def mean(values: list[Tensor], chosen: Tensor) -> Tensor:
        return torch.stack(values)[chosen].mean() if chosen.any() else torch.zeros(())

    return {
        "supervised": mean(cross, known),
        "instance": nt_xent(twin["projector"](seen), twin["projector"](other), 0.07),
        "neighbours": difference,
        "pseudo": mean(pseudo, ~known),
        "reverse": mean(reverse, ~known),
    }


def test_a_labelled_batch_costs_the_cross_entropy_half_of_the_host_and_the_neighbours() -> None:
    objective = TwinSight(simclr(), EVERYTHING)
    model = bundle(objective)
    part, step = parts(model, batch()), objective.step(model, batch())
    expected = part["supervised"] + 0.5 * part["instance"] + part["neighbours"]
    assert step.loss.item() == pytest.approx(expected.item(), abs=1e-9)
    assert step.pseudo_labels is None
    assert step.metrics["supervised-loss"] == pytest.approx(part["supervised"].item(), abs=1e-9)
    assert step.metrics["instance-loss"] == pytest.approx(part["instance"].item(), abs=1e-9)
    assert step.metrics["alignment"] == pytest.approx(part["neighbours"].item(), abs=1e-9)


def test_an_unlabelled_batch_has_half_of_the_pseudo_labels_instead() -> None:
    objective = TwinSight(simclr(), EVERYTHING)
    model, what = bundle(objective), batch(UNLABELLED)
    part, step = parts(model, what), objective.step(model, what)
    expected = 0.5 * part["instance"] + part["neighbours"] + 0.5 * part["pseudo"]
    assert step.loss.item() == pytest.approx(expected.item(), abs=1e-9)
    assert "accuracy" not in step.metrics
    assert step.pseudo_labels is not None
    assert step.pseudo_labels.accepted.all()
    assert step.pseudo_labels.places.tolist() == [0, 1, 2, 3]


def test_a_batch_of_both_has_five_times_the_pseudo_labels() -> None:
    objective = TwinSight(simclr(), EVERYTHING)
    model, what = bundle(objective), batch(MIXED)
    part, step = parts(model, what), objective.step(model, what)
    expected = part["supervised"] + 5 * part["pseudo"] + 0.5 * part["instance"] + part["neighbours"]
    assert step.loss.item() == pytest.approx(expected.item(), abs=1e-9)
    assert step.pseudo_labels is not None
    assert step.pseudo_labels.places.tolist() == [2, 3]


@pytest.mark.parametrize("labels", [LABELS, UNLABELLED, MIXED])
def test_the_gradient_is_that_of_the_slow_parts(labels: Tensor) -> None:
    objective = TwinSight(simclr(), EVERYTHING, pseudo_weight=5.0)
    model, what = bundle(objective), batch(labels)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    part = parts(model, what)
    slow = part["supervised"] + 5 * part["pseudo"] + 0.5 * part["instance"] + part["neighbours"]
    expected = torch.autograd.grad(slow, parameters, materialize_grads=True)
    found = torch.autograd.grad(objective.step(model, what).loss, parameters, materialize_grads=True)
    assert all(torch.allclose(one, other, atol=1e-9) for one, other in zip(found, expected, strict=True))


def test_nothing_is_learned_from_what_the_rule_does_not_accept() -> None:
    objective = TwinSight(simclr(), NOTHING)
    model, what = bundle(objective), batch(UNLABELLED)
    step = objective.step(model, what)
    part = parts(model, what)
    assert step.loss.item() == pytest.approx((0.5 * part["instance"] + part["neighbours"]).item(), abs=1e-9)
    assert step.metrics["pseudo-loss"] == 0
    assert step.terms is None


def test_the_supervised_network_begins_as_it_would_alone_and_its_twin_as_another_draw() -> None:
    alone, model = bundle(Supervised()).state_dict(), bundle(TwinSight(simclr(), NOTHING)).state_dict()
    assert all(torch.equal(tensor, model[name]) for name, tensor in alone.items())
    weight, other = (model[f"{network}body.0.0.weight"] for network in ("backbone.", "twin.backbone."))
    assert not torch.equal(weight, other)
    assert torch.equal(weight.flatten().sort().values, other.flatten().sort().values)


def test_each_network_learns_by_its_own_loss_and_both_by_the_neighbours() -> None:
    objective = TwinSight(simclr(), EVERYTHING)
    model = bundle(objective)
    twin = cast(nn.ModuleDict, model["twin"])
    step = objective.step(model, batch(MIXED))
    assert step.terms is not None
    own, neighbours = step.terms
    instance = step.loss - own - neighbours

    def reaches(term: Tensor, module: nn.Module) -> bool:
        found = torch.autograd.grad(term, list(module.parameters()), retain_graph=True, materialize_grads=True)
        return any(gradient.any() for gradient in found)

    assert [reaches(term, model["backbone"]) for term in (own, neighbours)] == [True, True]
    assert [reaches(term, twin["backbone"]) for term in (own, neighbours, instance)] == [False, True, True]
    assert torch.allclose(instance, 0.5 * parts(model, batch(MIXED))["instance"], atol=1e-9)


HOSTS = [
    simclr(),
    SimSiam(8, 4, 2, norm="none"),
    Byol(8, 4, norm="none"),
    BarlowTwins(hidden=8, dim=4, norm="none"),
    MoCo(hidden=8, dim=4, norm="none", queue_size=8),
]


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: type(host).__name__)
def test_the_twin_is_heard_while_its_host_runs_it(host: Objective) -> None:
    objective = TwinSight(host, NOTHING)
    model, what = bundle(objective), batch()
    calls: list[int] = []
    twin = cast(nn.ModuleDict, model["twin"])
    twin["backbone"].register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    alignment = objective.step(model, what).metrics["alignment"]
    assert sum(calls) == 8
    with torch.no_grad():
        rows = [F.normalize(network(what.views[0])) for network in (twin["backbone"], model["backbone"])]
    expected = (rows[0] @ rows[0].T - rows[1] @ rows[1].T).square().mean()
    assert alignment == pytest.approx(expected.item(), abs=1e-9)


class Host(Objective):
    """Pulls two views together, and takes down what it is told."""

    contract = PrivacyContract("queue", frozenset({"queue"}))
    views: tuple[Role, ...] = ("full", "full")
    min_batch = 3
    min_frames = 2
    num_uniforms = 1

    def __init__(self) -> None:
        self.calls: list[object] = []

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        return {"head": nn.Linear(encoder.feature_dim, 3), "queue": nn.Linear(1, population.num_examples)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        self.calls.append((sorted(model), batch.labels.tolist()))
        first, second = (model["head"](model["backbone"](view)) for view in batch.views)
        return Step((first - second).square().mean(), {"of-host": 3.0})

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        self.calls.append(("begin", sorted(model), first))

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        self.calls.append(("after", sorted(model), progress))


def test_the_host_is_asked_for_all_and_sees_no_labels() -> None:
    host = Host()
    objective = TwinSight(host, NOTHING)
    model = bundle(objective)
    groups = ["backbone", "head", "queue"]
    assert sorted(model) == ["backbone", "classifier", "twin", "twin_private"]
    objective.begin_round(model, first=True)
    assert objective.step(model, batch()).metrics["instance-of-host"] == 3
    objective.after_step(model, 0.25)
    assert host.calls == [("begin", groups, True), (groups, UNLABELLED.tolist()), ("after", groups, 0.25)]
    assert objective.contract == PrivacyContract("batch", frozenset({"twin_private"}))
    assert objective.views == ("light", "strong")
    assert (objective.min_batch, objective.min_frames, objective.num_uniforms) == (3, 2, 1)
    assert objective.draw(5, torch.rand(1).numpy()).frames.shape == (2, 5)


def test_a_batch_couples_its_examples_and_needs_two_whatever_the_host_does() -> None:
    objective = TwinSight(SimSiam(8, 4, 2, norm="none"), NOTHING)
    assert objective.contract == PrivacyContract("batch")
    assert objective.min_batch == 2
    assert TwinSight(simclr(), FlexMatch()).contract == PrivacyContract("batch", frozenset({RULE}))


class Listener(Rule):
    """Takes everything for class 1, and takes down what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[int], Tensor]] = []

    def learn(self, state: nn.Module | None, labelled: Seen, labels: Tensor) -> None:
        self.seen.append((f"learn {labels.tolist()}", labelled.places.tolist(), labelled.views))

    def targets(self, state: nn.Module | None, unlabelled: Seen) -> Targets:
        self.seen.append(("targets", unlabelled.places.tolist(), unlabelled.views))
        assert not unlabelled.logits.requires_grad
        return Targets(torch.ones_like(unlabelled.places), torch.ones(len(unlabelled.places)))

    def regularise(self, state: nn.Module | None, strong_logits: Tensor, targets: Targets) -> Tensor:
        return strong_logits.new_tensor(10.0)


def test_the_rule_learns_from_labelled_examples_and_then_names_the_others() -> None:
    plain, rule = TwinSight(simclr(), NOTHING, mixed_pseudo_weight=0.0), Listener()
    objective, what = TwinSight(simclr(), rule), batch(MIXED)
    step = objective.step(bundle(objective), what)
    assert [(name, places) for name, places, _ in rule.seen] == [("learn [0, 2]", [0, 1]), ("targets", [2, 3])]
    assert torch.equal(rule.seen[1][2], what.views[0][2:])
    assert step.pseudo_labels is not None
    assert step.pseudo_labels.labels.tolist() == [1, 1]
    rest = plain.step(bundle(plain), what).loss.item() + 5 * step.metrics["pseudo-loss"]
    assert step.loss.item() == pytest.approx(rest + 10, abs=1e-9)


def defective(*defects: Defect, host: Objective | None = None, rule: Rule = EVERYTHING) -> TwinSight:
    return TwinSight(host or simclr(), rule, reference_compat=defects)


@pytest.mark.parametrize(("number", "factor"), [(64, 4096 / 66), (3, 9.0), (10, 100 / 8)])
def test_xor_aligns_62_times_too_strongly_at_64_examples(number: int, factor: float) -> None:
    what = batch(torch.zeros(number, dtype=torch.int64))
    right, wrong = (objective.step(bundle(objective), what) for objective in (defective(), defective("xor")))
    assert wrong.metrics["alignment"] / right.metrics["alignment"] == pytest.approx(factor, rel=1e-9)
    assert wrong.loss.item() - right.loss.item() == pytest.approx((factor - 1) * right.metrics["alignment"], abs=1e-9)


def test_xor_makes_the_loss_of_two_examples_no_number() -> None:
    objective = defective("xor")
    assert torch.isnan(objective.step(bundle(objective), batch(LABELS[:2])).loss)
    assert torch.isfinite(defective().step(bundle(objective), batch(LABELS[:2])).loss)


def test_swapped_views_take_the_strong_view_for_the_pseudo_label_of_clients_without_labels() -> None:
    objective, what = defective("swapped_views"), batch(UNLABELLED)
    model = bundle(objective)
    part = parts(model, what)
    assert part["reverse"].item() != pytest.approx(part["pseudo"].item(), abs=1e-3)
    assert objective.step(model, what).metrics["pseudo-loss"] == pytest.approx(part["reverse"].item(), abs=1e-9)
    mixed = objective.step(model, batch(MIXED)).metrics["pseudo-loss"]
    assert mixed == pytest.approx(parts(model, batch(MIXED))["pseudo"].item(), abs=1e-9)


def test_without_pseudo_labels_a_client_without_labels_does_not_move_the_classifier() -> None:
    for labels, moved in ((UNLABELLED, False), (MIXED, True)):
        objective = defective("no_pseudo_labels")
        model = bundle(objective)
        step = objective.step(model, batch(labels))
        step.loss.backward()
        assert bool(cast(Tensor, model["classifier"].weight.grad).any()) is moved
        assert (step.pseudo_labels is not None) is moved


def test_a_frozen_teacher_stays_what_it_was_initialised_as() -> None:
    for defects, moved in (((), True), (("frozen_teacher",), False)):
        objective = defective(*defects, host=Byol(8, 4, norm="none", momentum_start=0.5))
        model = bundle(objective)
        before = model["twin_private"].state_dict()["teacher.projector.0.weight"].clone()
        cast(nn.ModuleDict, model["twin"])["projector"][0].weight.data += 1
        objective.begin_round(model, first=False)
        objective.after_step(model, 0.0)
        after = model["twin_private"].state_dict()["teacher.projector.0.weight"]
        assert torch.allclose(after, before + 0.5 * moved)


def test_the_projector_is_compared_instead_of_the_feature() -> None:
    objective, what = defective("projector_alignment", host=SimSiam(8, 4, 2, norm="none")), batch()
    model = bundle(objective)
    twin = cast(nn.ModuleDict, model["twin"])
    with torch.no_grad():
        rows = [twin["projector"](twin["backbone"](what.views[0])), model["backbone"](what.views[0])]
    one, other = (F.normalize(row) @ F.normalize(row).T for row in rows)
    found = objective.step(model, what).metrics["alignment"]
    assert found == pytest.approx((one - other).square().mean().item(), abs=1e-9)
    for tested, moved in ((objective, True), (TwinSight(SimSiam(8, 4, 2, norm="none"), EVERYTHING), False)):
        model = bundle(tested)
        step = tested.step(model, what)
        assert step.terms is not None
        weight = cast(nn.ModuleDict, model["twin"])["projector"][0].weight
        (gradient,) = torch.autograd.grad(step.terms[1], [weight], materialize_grads=True)
        assert bool(gradient.any()) is moved


def test_a_second_weak_view_leaves_grey_images_grey() -> None:
    augmentation = ImageAugmentation(8, 8, 4, full=ImageView())
    grey = torch.full((16, 3, 1, 8, 8), 128, dtype=torch.uint8)
    uniforms = np.random.default_rng(0).random((16, augmentation.num_uniforms))
    changed = []
    for objective in (TwinSight(simclr(), NOTHING), defective("second_weak_view")):
        view = augmentation(grey, uniforms, objective.views[1], 1)
        changed.append(((view - 128 / 255).abs() > 1e-3).flatten(1).any(dim=1).sum().item())
    assert changed[0] > 8
    assert changed[1] == 0
    assert TwinSight(simclr(), NOTHING, view="full").views == ("light", "full")


def test_a_single_network_has_the_loss_and_gradient_of_its_two_objectives() -> None:
    objective, what = TwinSight(simclr(), EVERYTHING, single_network=True), batch()
    model = bundle(objective)
    step = objective.step(model, what)
    alone = nn.ModuleDict({"backbone": model["backbone"], **dict(cast(nn.ModuleDict, model["twin"]).items())})
    supervised = Supervised().step(model, dataclasses.replace(what, views=what.views[:1])).loss
    expected = supervised + 0.5 * simclr().step(alone, what).loss
    assert torch.allclose(step.loss, expected, atol=1e-9)
    assert "alignment" not in step.metrics
    assert not any(name.startswith("twin.backbone") for name in model.state_dict())
    parameters = list(model["backbone"].parameters())
    pairs = zip(*(torch.autograd.grad(loss, parameters) for loss in (step.loss, expected)), strict=True)
    assert all(torch.allclose(one, other, atol=1e-9) for one, other in pairs)


def test_a_single_network_keeps_the_promises_of_its_host() -> None:
    host = SimSiam(8, 4, 2, norm="none")
    objective = TwinSight(host, NOTHING, single_network=True)
    assert (objective.contract, objective.min_batch) == (host.contract, 1)


@pytest.mark.parametrize("single", [True, False])
def test_the_angle_between_its_two_terms_is_measured_on_the_supervised_backbone(single: bool) -> None:
    objective = TwinSight(simclr(), NOTHING, single_network=single)
    model = bundle(objective)
    step = objective.step(model, batch())
    assert step.terms is not None
    (angle,) = gradient_angle(model, step.terms)
    assert 0 < angle < 180
    part = parts(model, batch()) if not single else {"supervised": step.terms[0], "neighbours": step.terms[1]}
    assert step.terms[0].item() == pytest.approx(part["supervised"].item(), abs=1e-9)
    assert step.terms[1].item() == pytest.approx(part["neighbours"].item(), abs=1e-9)


def opinionated(fusion: str, answer: Tensor, rule: Rule) -> tuple[TwinSight, nn.ModuleDict]:
    """Return a twin that gives the same logits whatever it sees, beside a network that says "class 0" by 0.8."""
    objective = TwinSight(simclr(), rule, fusion=fusion)  # type: ignore[arg-type]
    model = bundle(objective)
    own = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64).log()
    for layer, logits in ((model["classifier"], own), (cast(nn.ModuleDict, model["twin"])["twin_classifier"], answer)):
        layer.weight.data.zero_()
        layer.bias.data.copy_(logits)
    return objective, model


def test_the_twin_has_a_veto_where_both_must_agree() -> None:
    for answer, accepted in ((torch.tensor([1.0, 0, 0]), True), (torch.tensor([0, 1.0, 0]), False)):
        objective, model = opinionated("agree", answer, EVERYTHING)
        pseudo = objective.step(model, batch(UNLABELLED)).pseudo_labels
        assert pseudo is not None
        assert pseudo.labels.tolist() == [0] * 4
        assert pseudo.accepted.tolist() == [accepted] * 4


def test_a_surer_twin_outvotes_the_network_where_answers_are_weighted_by_entropy() -> None:
    for answer, label in (([0.0, 9, 0], 1), ([0.0, 0, 0], 0)):
        objective, model = opinionated("entropy", torch.tensor(answer), EVERYTHING)
        pseudo = objective.step(model, batch(UNLABELLED)).pseudo_labels
        assert pseudo is not None
        assert pseudo.labels.tolist() == [label] * 4


def test_a_twin_that_knows_nothing_lowers_confidence_to_the_weighted_mean() -> None:
    # entropies 0.6390 and log 3: weights 0.6129 and 0.3871, so 0.8 becomes 0.6193
    for threshold, accepted in ((0.619, True), (0.620, False)):
        objective, model = opinionated("entropy", torch.zeros(3), FixedThreshold(threshold))
        pseudo = objective.step(model, batch(UNLABELLED)).pseudo_labels
        assert pseudo is not None
        assert pseudo.accepted.tolist() == [accepted] * 4


def test_the_opinion_of_the_twin_learns_from_labels_and_changes_nothing_else() -> None:
    gradients = []
    for fusion in ("none", "agree"):
        objective = TwinSight(simclr(), NOTHING, fusion=fusion)  # type: ignore[arg-type]
        model = bundle(objective)
        objective.step(model, batch()).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, asked = gradients
    assert asked.keys() - plain.keys() == {"twin.twin_classifier.weight", "twin.twin_classifier.bias"}
    assert all(cast(Tensor, asked[name]).any() for name in asked.keys() - plain.keys())
    assert all(torch.equal(cast(Tensor, gradient), cast(Tensor, asked[name])) for name, gradient in plain.items())


def test_equal_examples_have_finite_gradients() -> None:
    for labels in (LABELS, UNLABELLED, MIXED):
        objective = TwinSight(simclr(), EVERYTHING, fusion="entropy")
        model = bundle(objective)
        objective.step(model, batch_of(*torch.zeros(2, 4, 1, 1, 8, 8).double(), labels=labels)).loss.backward()
        found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"instance_weight": -1.0}, "instance_weight must be 0 or more, got -1.0"),
        ({"neighbour_weight": -1.0}, "neighbour_weight must be 0 or more, got -1.0"),
        ({"pseudo_weight": -1.0}, "pseudo_weight must be 0 or more, got -1.0"),
        ({"mixed_pseudo_weight": -1.0}, "mixed_pseudo_weight must be 0 or more, got -1.0"),
        ({"unlabelled_ratio": 0}, "unlabelled_ratio must be at least 1, got 0"),
        ({"view": "light"}, "view must be one of strong, full, got light"),
        ({"fusion": "mean"}, "fusion must be one of none, agree, entropy, got mean"),
        ({"reference_compat": ["nor"]}, "reference_compat must be one of xor, .*, got nor"),
        ({"host": Supervised()}, "host must be an objective of two full views, got Supervised"),
        ({"reference_compat": ["frozen_teacher"]}, "host must have a teacher to freeze, got SimClr"),
        ({"single_network": True, "reference_compat": ["xor"]}, "reference_compat must be .*, got xor"),
        ({"single_network": True, "fusion": "agree"}, "fusion must be none .*, got agree"),
        ({"fusion": "agree", "reference_compat": ["swapped_views"]}, "fusion must be none .*, got agree"),
        ({"view": "full", "reference_compat": ["second_weak_view"]}, "view must be strong .*, got full"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        TwinSight(**{"host": simclr(), "rule": NOTHING, **arguments})  # type: ignore[arg-type]


def test_a_host_without_a_projector_has_none_to_align() -> None:
    with pytest.raises(ValueError, match="host must be an objective with a projector, got Host"):
        bundle(defective("projector_alignment", host=Host()))
