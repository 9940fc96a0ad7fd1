from math import log

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import arrays, build_bundle, load
from fedssl.models.image import small_resnet
from fedssl.objectives.dino import Center, Dino, DinoHead, centred_softmax, target_spread
from fedssl.objectives.multi_crop import cross_view
from fedssl.objectives.objective import Batch


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(num_local: int = 0, seed: int = 0, number: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    full = [torch.rand(number, 3, 1, 8, 8, generator=generator) for _ in range(2)]
    local = [torch.rand(number, 3, 1, 4, 4, generator=generator) for _ in range(num_local)]
    return batch_of(*full, *local)


def small(**changed: float | str) -> Dino:
    return Dino(**{"hidden": 8, "dim": 4, "num_prototypes": 6, "freeze_prototypes": 0.0, **changed})


def bundle(objective: Dino) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(width=2, norm="group"), objective, seed=0)


def test_a_constant_student_and_teacher_cost_the_log_of_all_columns() -> None:
    center = noise(5)
    targets = centred_softmax(center.expand(4, 5), center, 0.04)
    assert cross_view([targets], [targets, torch.ones(4, 5).double()]).item() == pytest.approx(log(5), abs=1e-9)


def test_a_student_that_agrees_costs_the_entropy_of_the_teacher() -> None:
    logits, center = noise(4, 5), noise(5, seed=1)
    targets = centred_softmax(logits, center, 0.5)
    loss = cross_view([targets], [targets, (logits - center) / 0.5]).item()
    assert loss == pytest.approx(target_spread(targets)["teacher-entropy"], abs=1e-9)


def test_the_center_closes_in_on_a_constant_mean_geometrically() -> None:
    center, mean = Center(3), torch.tensor([1.0, -2.0, 0.5])
    for _ in range(7):
        center.follow(torch.stack((mean + 1, mean - 1)), 0.9)
    torch.testing.assert_close(center.mean, mean * (1 - 0.9**7))


def test_a_vector_added_to_teacher_and_center_does_not_matter() -> None:
    logits, center, vector = noise(4, 5), noise(5, seed=1), noise(5, seed=2)
    moved = centred_softmax(logits + vector, center + vector, 0.07)
    torch.testing.assert_close(moved, centred_softmax(logits, center, 0.07), atol=1e-9, rtol=0)


def test_the_two_collapses_are_told_apart() -> None:
    uniform = target_spread(torch.full((4, 5), 0.2, dtype=torch.float64))
    assert uniform == pytest.approx({"teacher-entropy": log(5), "teacher-kl-uniform": 0}, abs=1e-9)
    same = target_spread(torch.eye(5).double()[:1].expand(4, 5))
    assert same == pytest.approx({"teacher-entropy": 0, "teacher-kl-uniform": log(5)}, abs=1e-9)
    spread = target_spread(torch.eye(5).double())
    assert spread == pytest.approx({"teacher-entropy": 0, "teacher-kl-uniform": 0}, abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_head_and_the_loss_have_the_gradient_of_finite_differences(seed: int) -> None:
    head = DinoHead(3, 4, 3, 5, "none").double()
    targets = noise(2, 4, 5, seed=seed).softmax(dim=2)
    features = noise(12, 3, seed=seed + 9).requires_grad_()
    loss = lambda rows: cross_view(list(targets), head(rows)[1].split(4))  # noqa: E731
    assert torch.autograd.gradcheck(loss, features)


def test_logits_are_cosines_whatever_the_length_of_the_last_layer() -> None:
    head, features = DinoHead(3, 4, 3, 5, "none"), noise(6, 3).float()
    embeddings, logits = head(features)
    expected = torch.cosine_similarity(embeddings[:, None], head.prototypes.weight, dim=2)
    torch.testing.assert_close(logits, expected)
    with torch.no_grad():
        head.prototypes.weight.mul_(7)
    torch.testing.assert_close(head(features)[1], expected)


@pytest.mark.parametrize("num_local", [0, 2])
def test_a_step_predicts_the_teacher_across_views(num_local: int) -> None:
    objective = small(num_local=num_local, warmup=0.0)
    model, batch = bundle(objective), images(num_local)
    with torch.no_grad():
        model["center"].mean.copy_(torch.arange(6) / 10)
        model["teacher"]["head"].prototypes.weight.neg_()
    center = model["center"].mean.clone()
    assert len(objective.views) == len(batch.views)
    step = objective.step(model, batch)
    teacher = model["teacher"]
    expected = [teacher["head"](teacher["backbone"](view))[1] for view in batch.views[:2]]
    targets = [((rows - center) / 0.07).softmax(dim=1) for rows in expected]
    logits = [model["head"](model["backbone"](view))[1] / 0.1 for view in batch.views]
    torch.testing.assert_close(step.loss, cross_view(targets, logits))
    torch.testing.assert_close(model["center"].mean, 0.9 * center + 0.1 * torch.cat(expected).mean(dim=0))
    assert {"teacher-entropy", "teacher-kl-uniform", "embedding-rank"} <= set(step.metrics)


def test_the_teacher_gets_no_gradient_and_follows_after_the_step() -> None:
    objective = small(momentum_start=0.5, momentum_end=0.5)
    model = bundle(objective)
    objective.begin_round(model, first=True)
    objective.step(model, images()).loss.backward()
    assert all(parameter.grad is None for parameter in model["teacher"].parameters())
    assert all(parameter.grad is not None for group in ("backbone", "head") for parameter in model[group].parameters())
    before = model["teacher"]["head"].prototypes.weight.clone()
    with torch.no_grad():
        model["head"].prototypes.weight.add_(1)
    objective.after_step(model, 0.2)
    torch.testing.assert_close(model["teacher"]["head"].prototypes.weight, before + 0.5)


def test_the_teachers_temperature_warms_up_in_a_straight_line() -> None:
    objective = Dino(warmup=0.2)
    temperatures = [objective.teacher_temperature(done) for done in (0, 0.1, 0.2, 1)]
    assert temperatures == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert Dino(warmup=0.0).teacher_temperature(0) == 0.07


def test_the_last_layer_rests_at_the_beginning_of_the_run() -> None:
    objective = small(freeze_prototypes=0.1)
    model = bundle(objective)
    for progress, rests in ((0.05, True), (0.1, True), (0.2, False)):
        model.zero_grad(set_to_none=True)
        objective.step(model, images()).loss.backward()
        assert (model["head"].prototypes.weight.grad is None) == rests
        objective.after_step(model, progress)


def test_what_is_private_stays_and_a_restored_model_goes_on_with_the_same_bits() -> None:
    objective = small()
    model, restored = bundle(objective), bundle(objective)
    assert set(model) == {"backbone", "head", "teacher", "center", "progress"}
    assert objective.contract.private_groups == {"teacher", "center", "progress"}
    objective.step(model, images(seed=1)).loss.backward()
    objective.after_step(model, 0.3)
    load(restored, arrays(model, None))
    assert torch.equal(objective.step(model, images(seed=2)).loss, objective.step(restored, images(seed=2)).loss)


def test_beside_the_center_a_gradient_is_a_mean_over_examples() -> None:
    objective = small()
    assert objective.contract.coupling == "global_state"

    def gradient(batch: Batch) -> Tensor:
        model = bundle(objective)
        with torch.no_grad():
            model["center"].mean.copy_(torch.arange(6) / 10)
        objective.step(model, batch).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    batch = images()
    singles = [gradient(batch_of(*(view[place : place + 1] for view in batch.views))) for place in range(4)]
    torch.testing.assert_close(gradient(batch), torch.stack(singles).mean(dim=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("number", "norm"), [(1, "none"), (1, "batch"), (4, "batch")])
def test_one_example_and_dark_images_have_a_finite_gradient(number: int, norm: str) -> None:
    objective = small(norm=norm)
    model = bundle(objective)
    loss = objective.step(model, batch_of(*torch.zeros(2, number, 3, 1, 8, 8))).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "name",
    ["hidden", "dim", "num_prototypes", "num_local", "temperature", "teacher_temperature_start",
     "teacher_temperature_end", "warmup", "center_momentum", "freeze_prototypes", "momentum_start", "momentum_end"],
)  # fmt: skip
def test_arguments_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        Dino(**{name: -1})
