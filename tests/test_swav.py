from math import exp, log

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import arrays, build_bundle, load
from fedssl.models.image import small_resnet
from fedssl.objectives.multi_crop import crop_features, cross_view
from fedssl.objectives.objective import Batch, Population
from fedssl.objectives.sinkhorn import sinkhorn
from fedssl.objectives.swav import Swav


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(num_local: int = 0, seed: int = 0, number: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    full = [torch.rand(number, 3, 1, 8, 8, generator=generator) for _ in range(2)]
    local = [torch.rand(number, 3, 1, 4, 4, generator=generator) for _ in range(num_local)]
    return batch_of(*full, *local)


def bundle(objective: Swav) -> nn.ModuleDict:
    model = build_bundle(lambda: small_resnet(width=2), objective, seed=0, population=Population(64))
    objective.begin_round(model, first=True)
    return model


def embeddings(model: nn.ModuleDict, batch: Batch) -> list[Tensor]:
    return [nn.functional.normalize(model["projector"](model["backbone"](view)), dim=1) for view in batch.views]


def small(**changed: float | str) -> Swav:
    return Swav(**{"hidden": 8, "dim": 4, "num_prototypes": 6, "queue_size": 16, "freeze_prototypes": 0.0, **changed})


def test_equal_scores_are_assigned_equally() -> None:
    plan = sinkhorn(torch.full((5, 4), 0.3, dtype=torch.float64), epsilon=0.05, iterations=3)
    torch.testing.assert_close(plan, torch.full((5, 4), 0.25, dtype=torch.float64), atol=1e-12, rtol=0)
    assert cross_view([plan], [plan, torch.zeros(5, 4).double()]).item() == pytest.approx(log(4), abs=1e-9)


def test_orthogonal_scores_are_assigned_almost_one_to_one() -> None:
    plan = sinkhorn(torch.eye(4, dtype=torch.float64), epsilon=0.05, iterations=3)
    other = exp(-20) / (1 + 3 * exp(-20))
    expected = torch.full((4, 4), other, dtype=torch.float64).fill_diagonal_(1 - 3 * other)
    torch.testing.assert_close(plan, expected, atol=1e-12, rtol=1e-9)


def test_rows_sum_to_one_and_after_many_iterations_columns_are_equal() -> None:
    plan = sinkhorn(noise(12, 4), epsilon=0.5, iterations=300)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(12).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(plan.sum(dim=0), torch.full((4,), 3.0).double(), atol=1e-9, rtol=0)


def test_the_plan_is_that_of_a_slow_loop() -> None:
    scores = noise(5, 3)
    plan = [[exp(value / 0.5) for value in row] for row in scores.tolist()]
    for _ in range(3):
        columns = [sum(row[k] for row in plan) for k in range(3)]
        plan = [[value / column / 3 for value, column in zip(row, columns, strict=True)] for row in plan]
        plan = [[value / sum(row) for value in row] for row in plan]
    torch.testing.assert_close(sinkhorn(scores, 0.5, 3), torch.tensor(plan, dtype=torch.float64), atol=1e-9, rtol=0)


def test_without_balance_every_row_goes_where_it_fits_best_and_in_between_columns_differ_less() -> None:
    scores = noise(20, 3) + torch.tensor([2.0, 0.0, 0.0])
    torch.testing.assert_close(sinkhorn(scores, 0.5, 3, balance=0), (scores / 0.5).softmax(dim=1), atol=1e-9, rtol=0)
    spread = [sinkhorn(scores, 0.5, 100, balance).sum(dim=0).std().item() for balance in (0, 0.5, 1)]
    assert spread[0] > spread[1] > spread[2]


def test_scores_of_any_size_have_a_plan_without_gradient() -> None:
    scores = torch.tensor([[1e4, 0.0, -1e4], [1e4, -1e4, 0.0], [1e4, 0.0, 0.0]], requires_grad=True)
    plan = sinkhorn(scores, epsilon=0.05, iterations=3)
    assert plan.isfinite().all()
    assert not plan.requires_grad


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_is_that_of_a_slow_loop_and_has_its_gradient(seed: int) -> None:
    logits, targets = noise(3, 4, 5, seed=seed), noise(2, 4, 5, seed=seed + 9).softmax(dim=2)
    losses = []
    for a in range(2):
        for b in range(3):
            for target, row in zip(targets[a].tolist(), logits[b].tolist(), strict=True):
                total = sum(exp(value) for value in row)
                if a != b:
                    losses.append(-sum(t * log(exp(x) / total) for t, x in zip(target, row, strict=True)))
    assert cross_view(list(targets), list(logits)).item() == pytest.approx(sum(losses) / len(losses), abs=1e-9)
    assert torch.autograd.gradcheck(lambda rows: cross_view(list(targets), list(rows)), logits.requires_grad_())


def test_crops_of_one_size_pass_the_backbone_together() -> None:
    sizes = []

    class Mean(nn.Module):
        def forward(self, clips: Tensor) -> Tensor:
            sizes.append(len(clips))
            return clips.mean(dim=(2, 3, 4))

    views = images(num_local=3).views
    torch.testing.assert_close(crop_features(Mean(), views), torch.cat([Mean()(view) for view in views]))
    assert sizes[:2] == [16, 24]


@pytest.mark.parametrize("num_local", [0, 2])
def test_a_step_predicts_assignments_across_views(num_local: int) -> None:
    objective = small(num_local=num_local, queue_size=0)
    model, batch = bundle(objective).eval(), images(num_local)
    assert len(objective.views) == len(batch.views)
    step = objective.step(model, batch)
    scores = [view @ model["prototypes"].weight.T for view in embeddings(model, batch)]
    plans = [sinkhorn(view, 0.05, 3) for view in scores[:2]]
    torch.testing.assert_close(step.loss, cross_view(plans, [view / 0.1 for view in scores]))
    assert "embedding-rank" in step.metrics


def test_the_queue_is_assigned_along_from_its_start_on_and_keeps_the_newest() -> None:
    objective, without = small(queue_start=0.5), small(queue_size=0)
    model = bundle(objective).eval()
    first, second = images(seed=1), images(seed=2)
    objective.step(model, first)
    objective.after_step(model, 0.4)
    early = objective.step(model, second).loss
    torch.testing.assert_close(early, without.step(nn.ModuleDict({**model, "queue": nn.ModuleList()}), second).loss)
    objective.after_step(model, 0.5)
    kept = [queue.rows() for queue in model["queue"]]
    late = objective.step(model, images(seed=3)).loss
    embedded = embeddings(model, images(seed=3))
    scores = [torch.cat(rows) @ model["prototypes"].weight.T for rows in zip(embedded, kept, strict=True)]
    plans = [sinkhorn(view, 0.05, 3)[:8] for view in scores]
    torch.testing.assert_close(late, cross_view(plans, [view[:8] / 0.1 for view in scores]))
    torch.testing.assert_close(model["queue"][0].rows()[-8:], embedded[0])
    assert len(model["queue"][0]) == 16


@pytest.mark.parametrize(("kept", "number"), [("keep", 8), ("reset", 0)])
def test_a_round_keeps_or_empties_the_queue(kept: str, number: int) -> None:
    objective = small(queue=kept)
    model = bundle(objective)
    objective.step(model, images())
    objective.begin_round(model, first=False)
    assert len(model["queue"][0]) == number


def test_prototypes_rest_at_the_beginning_of_the_run_and_stay_on_the_sphere() -> None:
    objective = small(freeze_prototypes=0.1)
    model = bundle(objective)
    weight = model["prototypes"].weight
    for progress, rests in ((0.05, True), (0.1, True), (0.2, False)):
        model.zero_grad(set_to_none=True)
        objective.step(model, images()).loss.backward()
        assert (weight.grad is None) == rests
        with torch.no_grad():
            weight.mul_(3)
        objective.after_step(model, progress)
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(6))


def test_a_mean_over_clients_is_put_back_on_the_sphere() -> None:
    objective = small()
    model = bundle(objective)
    with torch.no_grad():
        model["prototypes"].weight.mul_(0.5)
    objective.begin_round(model, first=False)
    torch.testing.assert_close(model["prototypes"].weight.norm(dim=1), torch.ones(6))


def test_memory_stays_on_the_client_and_a_restored_model_goes_on_with_the_same_bits() -> None:
    objective = small(queue_start=0.0)
    model, restored = bundle(objective), bundle(objective)
    assert set(model) == {"backbone", "projector", "prototypes", "queue", "progress"}
    assert objective.contract.private_groups == {"queue", "progress"}
    objective.step(model, images(seed=1)).loss.backward()
    objective.after_step(model, 0.3)
    load(restored, arrays(model, None))
    assert torch.equal(objective.step(model, images(seed=2)).loss, objective.step(restored, images(seed=2)).loss)


def test_equal_examples_and_dark_images_have_a_finite_gradient() -> None:
    for number in (1, 8):
        model = bundle(small())
        batch = batch_of(*torch.zeros(2, number, 3, 1, 8, 8))
        loss = small().step(model, batch).loss
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_examples_of_a_batch_are_coupled() -> None:
    objective = small(queue_size=0, norm="none")
    assert objective.contract.coupling == "batch"
    model, batch = bundle(objective).eval(), images()
    halves = [batch_of(*(view[part] for view in batch.views)) for part in (slice(4), slice(4, 8))]
    mean = sum(objective.step(model, half).loss.item() for half in halves) / 2
    assert objective.step(model, batch).loss.item() != pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize(
    "name",
    ["hidden", "dim", "num_prototypes", "num_local", "temperature", "epsilon", "iterations", "balance", "queue_size",
     "queue_start", "queue", "freeze_prototypes"],
)  # fmt: skip
def test_arguments_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        Swav(**{name: -1})
