from math import exp, log

import pytest
import torch
from batches import batch_of
from pixel_logits import logit_model, view_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.free_match import FreeMatch
from fedssl.objectives.objective import UNKNOWN, Batch, Population, Step
from fedssl.objectives.pseudo_labels import Rule, Seen, Targets
from fedssl.objectives.semi_supervised import SemiSupervised, negative_entropy, weighted_cross_entropy
from fedssl.objectives.threshold_rules import FixedThreshold, FlexMatch

SURE, UNSURE = [9.0, 0.0, 0.0], [0.5, 0.0, 0.0]  # with probability 0.9998 and 0.45 of class 0


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fixmatch(threshold: float = 0.95, **changed: float | str | bool | None) -> SemiSupervised:
    return SemiSupervised(FixedThreshold(threshold), **changed)


def unlabelled(weak: Tensor, strong: Tensor | None = None) -> Batch:
    return batch_of(view_of(weak), view_of(weak if strong is None else strong))


def step_of(objective: SemiSupervised, batch: Batch) -> Step:
    return objective.step(logit_model(objective, batch.views[0].shape[1]), batch)


def test_nothing_below_the_threshold_costs_anything() -> None:
    step = step_of(fixmatch(), unlabelled(rows(UNSURE, UNSURE), noise(2, 3)))
    assert step.loss.item() == 0
    step.loss.backward()
    assert step.pseudo_labels.accepted.tolist() == [False, False]
    assert step.metrics == {"unsupervised-loss": 0.0}


@pytest.mark.parametrize("number", [1, 4, 7])
def test_one_accepted_example_is_divided_by_all_of_them(number: int) -> None:
    weak = rows(*[SURE, *[UNSURE] * (number - 1)])
    strong = noise(number, 3)
    step = step_of(fixmatch(), unlabelled(weak, strong))
    probability = strong[0].softmax(dim=0)[0].item()
    assert step.loss.item() == pytest.approx(-log(probability) / number, abs=1e-9)


@pytest.mark.parametrize(("threshold", "cost"), [(0.25, log(4)), (0.2500001, 0.0)])
def test_uniform_predictions_are_accepted_only_up_to_one_over_the_classes(threshold: float, cost: float) -> None:
    uniform = torch.zeros(3, 4, dtype=torch.float64)
    assert step_of(fixmatch(threshold), unlabelled(uniform)).loss.item() == pytest.approx(cost, abs=1e-9)


def test_a_step_is_that_of_a_slow_loop() -> None:
    weak, strong = 4 * noise(6, 3, seed=1), noise(6, 3, seed=2)
    labels = torch.tensor([1, UNKNOWN, UNKNOWN, 0, UNKNOWN, UNKNOWN])
    supervised = unsupervised = 0.0
    for one, other, label in zip(weak.tolist(), strong.tolist(), labels.tolist(), strict=True):
        probabilities = [exp(value) / sum(exp(each) for each in one) for value in one]
        if label != UNKNOWN:
            supervised -= log(probabilities[label]) / 2
        elif max(probabilities) >= 0.8:
            guess = probabilities.index(max(probabilities))
            unsupervised -= log(exp(other[guess]) / sum(exp(each) for each in other)) / 4
    assert unsupervised > 0
    step = step_of(fixmatch(0.8, weight=0.3), batch_of(view_of(weak), view_of(strong), labels=labels))
    assert step.loss.item() == pytest.approx(supervised + 0.3 * unsupervised, abs=1e-9)
    assert [term.item() for term in step.terms] == pytest.approx([supervised, 0.3 * unsupervised], abs=1e-9)
    assert step.metrics["supervised-loss"] == pytest.approx(supervised, abs=1e-9)
    assert step.metrics["unsupervised-loss"] == pytest.approx(unsupervised, abs=1e-9)
    assert step.pseudo_labels.places.tolist() == [1, 2, 4, 5]
    assert step.pseudo_labels.labels.tolist() == weak[[1, 2, 4, 5]].argmax(dim=1).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_has_the_gradient_of_its_value_and_none_towards_what_gives_the_label(seed: int) -> None:
    weak, strong = 6 * noise(4, 3, seed=seed), noise(4, 3, seed=seed + 9).requires_grad_()
    targets = Targets(weak.argmax(dim=1), torch.tensor([1.0, 0.0, 0.5, 1.0]).double())
    assert torch.autograd.gradcheck(lambda views: weighted_cross_entropy(views, targets), strong)
    weak.requires_grad_()
    step_of(fixmatch(0.5), unlabelled(weak, strong)).loss.backward()
    assert weak.grad.abs().sum() == 0
    assert strong.grad.abs().sum() > 0


@pytest.mark.parametrize("classes", [2, 10])
def test_a_uniform_mean_has_the_least_negative_entropy(classes: int) -> None:
    assert negative_entropy(torch.zeros(3, classes).double()).item() == pytest.approx(-log(classes), abs=1e-9)
    one_each = 500 * torch.eye(classes, dtype=torch.float64)
    assert negative_entropy(one_each).item() == pytest.approx(-log(classes), abs=1e-9)
    assert negative_entropy(one_each[:1].expand(5, -1)).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_negative_entropy_is_that_of_a_slow_loop_and_has_its_gradient(seed: int) -> None:
    logits, expected = noise(4, 3, seed=seed), 0.0
    for label in range(3):
        mean = sum(exp(row[label]) / sum(exp(each) for each in row) for row in logits.tolist()) / 4
        expected += mean * log(mean)
    assert negative_entropy(logits).item() == pytest.approx(expected, abs=1e-9)
    assert torch.autograd.gradcheck(negative_entropy, logits.requires_grad_())


def test_a_class_of_no_probability_has_a_finite_gradient_of_the_entropy() -> None:
    logits = rows([2000, 0, 0], [2000, 0, 0]).requires_grad_()
    negative_entropy(logits).backward()
    assert torch.isfinite(logits.grad).all()


def test_the_entropy_is_of_the_weak_views_and_has_their_gradient() -> None:
    weak = noise(4, 3).requires_grad_()
    step = step_of(fixmatch(entropy_weight=0.7), unlabelled(weak, noise(4, 3, seed=1)))
    assert step.loss.item() == pytest.approx(0.7 * negative_entropy(weak).item(), abs=1e-9)
    step.loss.backward()
    (expected,) = torch.autograd.grad(0.7 * negative_entropy(weak), weak)
    torch.testing.assert_close(weak.grad, expected)


def test_one_step_down_the_entropy_spreads_the_mean_prediction() -> None:
    weak = rows([2, 0, 0], [1, 0, 0]).requires_grad_()
    (slope,) = torch.autograd.grad(negative_entropy(weak), weak)
    before, after = ((weak - step * slope).softmax(dim=1).mean(dim=0).max() for step in (0, 1))
    assert after < before


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0)])
def test_the_weight_rises_from_nothing_over_the_ramp(progress: float, share: float) -> None:
    objective, batch = fixmatch(ramp=0.4, weight=2.0), unlabelled(rows(SURE), rows([0, 0, 0]))
    model = logit_model(objective, 3)
    if progress:
        objective.after_step(model, progress)
    assert objective.step(model, batch).loss.item() == pytest.approx(2 * share * log(3), abs=1e-6)


def test_the_progress_of_a_ramp_stays_with_the_client() -> None:
    assert fixmatch(ramp=0.4).contract.private_groups == {"progress"}
    assert set(logit_model(fixmatch(ramp=0.4), 3)) == {"backbone", "classifier", "progress"}
    assert fixmatch().contract.private_groups == set()
    assert set(logit_model(fixmatch(), 3)) == {"backbone", "classifier"}


def test_the_light_view_may_learn_from_its_own_label() -> None:
    objective = fixmatch(view="light")
    assert objective.views == ("light",)
    weak = rows(SURE, UNSURE).requires_grad_()
    step = step_of(objective, batch_of(view_of(weak)))
    assert step.loss.item() == pytest.approx(-log(weak[0].softmax(dim=0)[0].item()) / 2, abs=1e-9)
    step.loss.backward()
    assert weak.grad[0].abs().sum() > 0
    assert weak.grad[1].abs().sum() == 0


class Recording(Rule):
    """Writes down who saw what."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []

    def build(self, encoder: nn.Module, population: Population) -> nn.Module:
        return nn.BatchNorm1d(1)

    def learn(self, state: nn.Module | None, labelled: Seen, labels: Tensor) -> None:
        assert isinstance(state, nn.BatchNorm1d)
        self.heard.append(("learn", (labelled.places.tolist(), labels.tolist())))
        assert not labelled.features.requires_grad

    def targets(self, state: nn.Module | None, unlabelled: Seen) -> Targets:
        self.heard.append(("targets", unlabelled.places.tolist()))
        assert not unlabelled.logits.requires_grad
        return Targets(torch.zeros_like(unlabelled.places), torch.full(unlabelled.places.shape, 0.25).double())

    def regularise(self, state: nn.Module | None, strong_logits: Tensor, targets: Targets) -> Tensor:
        return strong_logits.sum()

    def begin_round(self, state: nn.Module | None, *, first: bool) -> None:
        self.heard.append(("begin", first))

    def after_step(self, state: nn.Module | None, progress: float) -> None:
        self.heard.append(("after", progress))


def test_a_rule_learns_before_it_labels_and_its_own_term_is_added() -> None:
    objective, labels = SemiSupervised(Recording(), weight=2.0), torch.tensor([UNKNOWN, 2, UNKNOWN])
    model, strong = logit_model(objective, 3), noise(3, 3)
    objective.begin_round(model, first=True)
    step = objective.step(model, batch_of(view_of(torch.zeros(3, 3).double()), view_of(strong), labels=labels))
    objective.after_step(model, 0.5)
    heard = [("begin", True), ("learn", ([1], [2])), ("targets", [0, 2]), ("after", 0.5)]
    assert objective.rule.heard == heard
    learning = strong[[0, 2]]
    costs = nn.functional.cross_entropy(learning, torch.tensor([0, 0])) / 4
    assert step.loss.item() == pytest.approx((log(3) + 2 * costs + learning.sum()).item(), abs=1e-9)
    assert objective.contract.private_groups == {"rule"}


def test_a_batch_of_one_kind_has_the_terms_of_that_kind_alone() -> None:
    objective = fixmatch(0.0, entropy_weight=1.0)
    model, logits = logit_model(objective, 3), noise(2, 3)
    known = objective.step(model, batch_of(view_of(logits), view_of(logits), labels=torch.tensor([0, 1])))
    unknown = objective.step(model, unlabelled(logits))
    assert set(known.metrics) == {"accuracy", "supervised-loss"}
    assert set(unknown.metrics) == {"unsupervised-loss"}
    assert known.pseudo_labels is known.terms is unknown.terms is None
    for step in (known, unknown):
        model.zero_grad()
        step.loss.backward()
        assert model["classifier"].weight.grad.abs().sum() > 0


def normed(freeze_norms: bool, view: str = "strong") -> tuple[SemiSupervised, nn.ModuleDict]:
    objective = fixmatch(0.0, freeze_norms=freeze_norms, view=view)
    return objective, build_bundle(lambda: small_resnet(1, width=2), objective, 0, Population(8, 3)).double()


def pictures(labels: list[int], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [torch.rand(len(labels), 1, 1, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]
    return batch_of(*views, labels=torch.tensor(labels))


def statistics(model: nn.ModuleDict) -> list[Tensor]:
    return [buffer.clone() for buffer in model["backbone"].buffers()]


def test_all_views_of_a_batch_pass_batch_normalisation_together() -> None:
    objective, model = normed(freeze_norms=False)
    batch = pictures([1, UNKNOWN, UNKNOWN])
    seen = []
    model["backbone"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    objective.step(model, batch)
    (together,) = seen
    torch.testing.assert_close(together, torch.cat((batch.views[0], batch.views[1][1:])), atol=0, rtol=0)


@pytest.mark.parametrize("view", ["light", "strong"])
def test_frozen_norms_are_moved_by_labelled_examples_alone(view: str) -> None:
    objective, model = normed(freeze_norms=True, view=view)
    before = statistics(model)
    objective.step(model, pictures([UNKNOWN, UNKNOWN]))
    assert all(map(torch.equal, before, statistics(model)))
    objective.step(model, pictures([1, 2, UNKNOWN, UNKNOWN]))
    mixed = statistics(model)
    _, other = normed(freeze_norms=True, view=view)
    other["backbone"](pictures([1, 2, UNKNOWN, UNKNOWN]).views[0][:2])
    assert all(map(torch.equal, mixed, statistics(other)))
    assert not all(map(torch.equal, before, mixed))


def test_frozen_norms_still_use_the_statistics_of_the_unlabelled_batch() -> None:
    objective, model = normed(freeze_norms=True)
    batch = pictures([UNKNOWN, UNKNOWN])
    loss = objective.step(model, batch).loss.item()
    _, other = normed(freeze_norms=False)
    assert objective.step(other, batch).loss.item() == loss
    objective.freeze_norms = False
    assert objective.step(model, batch).loss.item() == loss


@pytest.mark.parametrize("freeze_norms", [False, True])
@pytest.mark.parametrize("labels", [[0], [UNKNOWN], [UNKNOWN, 2]])
def test_the_smallest_batches_have_finite_gradients_with_batch_normalisation(
    labels: list[int], freeze_norms: bool
) -> None:
    objective, model = normed(freeze_norms)
    objective.step(model, pictures(labels)).loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model["backbone"].parameters() if p.grad is not None)


def test_the_coupling_is_the_rules_unless_the_entropy_couples_the_batch() -> None:
    assert fixmatch().contract.coupling == "per_example"
    assert fixmatch(entropy_weight=1.0).contract.coupling == "batch"


@pytest.mark.parametrize("rule", [FlexMatch(), FreeMatch(momentum=0.5, fairness_weight=0.0)])
def test_what_came_before_changes_the_gradient_of_a_batch_where_the_rule_says_so(rule: Rule) -> None:
    objective = SemiSupervised(rule)
    assert (objective.contract.coupling, objective.contract.private_groups) == ("global_state", {"rule"})
    model, moved = logit_model(objective, 3), []
    for _ in range(2):
        strong = noise(2, 3).requires_grad_()
        objective.step(model, unlabelled(rows(UNSURE, UNSURE), strong)).loss.backward()
        moved.append(strong.grad.abs().sum().item() > 0)
        objective.step(model, unlabelled(rows(SURE, SURE, SURE, SURE)))
    assert moved == [True, False]


def test_fairness_couples_the_examples_of_a_batch() -> None:
    objective = SemiSupervised(FreeMatch(fairness_weight=0.01))
    assert objective.contract.coupling == "batch"
    strong, slopes = rows([2, 0, 0], [0, 1, 0]), []
    for chosen in ([0, 1], [0], [1]):
        own = strong[chosen].requires_grad_()
        step_of(objective, unlabelled(rows(*[UNSURE] * len(chosen)), own)).loss.backward()
        slopes.append(own.grad)
    assert not torch.allclose(slopes[0], torch.cat(slopes[1:]) / 2, rtol=1e-3)


@pytest.mark.parametrize("labels", [[0, 1], [UNKNOWN, UNKNOWN]])
def test_the_gradient_of_fixmatch_is_the_mean_of_those_of_its_examples(labels: list[int]) -> None:
    objective = fixmatch(0.0)
    model = build_bundle(lambda: small_resnet(1, width=4, norm="group"), objective, 0, Population(8, 3)).double()
    batch = pictures(labels)

    def gradient(chosen: list[bool]) -> Tensor:
        model.zero_grad()
        objective.step(model, batch.where(torch.tensor(chosen))).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    whole, first, second = gradient([True, True]), gradient([True, False]), gradient([False, True])
    torch.testing.assert_close(whole, (first + second) / 2, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", -1), ("ramp", 1.5), ("entropy_weight", -1), ("view", "full"), ("unlabelled_ratio", 0)],
)
def test_arguments_out_of_range_are_named(name: str, value: float | str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        fixmatch(**{name: value})
