from math import exp, log

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.moco import MoCo, moco_loss, sliced
from fedssl.objectives.objective import Population
from fedssl.objectives.queue import Queue, capacity, unit

TEMPERATURE = 0.2


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bundle(objective: MoCo, num_examples: int = 100) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(1, 2), objective, seed=0, population=Population(num_examples)).double()


def images(number: int, seed: int = 0) -> Tensor:
    return torch.rand(2, number, 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_key_that_is_found_among_orthogonal_negatives_has_a_known_cost() -> None:
    query, negatives = torch.eye(2, dtype=torch.float64)[:1], torch.eye(2, dtype=torch.float64)[1:].expand(4096, 2)
    loss = moco_loss(query, 5 * query, negatives, TEMPERATURE).item()
    assert loss == pytest.approx(log(1 + 4096 * exp(-1 / TEMPERATURE)), abs=1e-9)
    assert loss == pytest.approx(3.3534, abs=1e-4)


def test_negatives_that_are_the_query_cost_the_log_of_all() -> None:
    query = torch.eye(2, dtype=torch.float64)[:1]
    assert moco_loss(query, query, query.expand(4096, 2), TEMPERATURE).item() == pytest.approx(log(4097), abs=1e-9)


def test_without_negatives_there_is_no_loss() -> None:
    queries, keys = draws(2, 5, 3)
    assert moco_loss(queries, keys, Queue(8, 3).rows(), TEMPERATURE).item() == 0


def test_the_loss_is_that_of_a_slow_loop() -> None:
    queries, keys, negatives = draws(3, 5, 3)
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        scores = [float(query @ other / query.norm() / other.norm()) / TEMPERATURE for other in (key, *negatives)]
        total += log(sum(exp(score) for score in scores)) - scores[0]
    found = moco_loss(queries, keys, unit(negatives), TEMPERATURE).item()
    assert found == pytest.approx(total / 5, abs=1e-9)


def test_the_loss_has_the_gradient_of_its_value_and_none_towards_keys_and_negatives() -> None:
    for seed in range(3):
        queries, keys, negatives = (rows.requires_grad_() for rows in draws(3, 4, 3, seed=seed).unbind())
        fixed = keys.detach(), negatives.detach()
        assert torch.autograd.gradcheck(lambda rows, fixed=fixed: moco_loss(rows, *fixed, TEMPERATURE), queries)
        moco_loss(queries, keys, negatives, TEMPERATURE).backward()
        assert (keys.grad, negatives.grad) == (None, None)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_pair_has_a_finite_loss_and_gradient(value: float) -> None:
    query = torch.full((1, 3), value, requires_grad=True)
    loss = moco_loss(query, torch.full((1, 3), value), torch.zeros(2, 3), TEMPERATURE)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(query.grad).all()


def test_a_queue_holds_the_last_rows_in_order_and_splits_at_the_wrap() -> None:
    queue, rows = Queue(5, 2), torch.arange(24.0).view(12, 2)
    assert queue.rows().shape == (0, 2)
    for start in range(0, 12, 3):
        queue.write(rows[start : start + 3])
        assert torch.equal(queue.rows(), rows[: start + 3][-5:])
    assert torch.equal(queue.embeddings, rows[[10, 11, 7, 8, 9]])


def test_a_queue_keeps_the_last_of_more_rows_than_it_has() -> None:
    queue, rows = Queue(4, 2), torch.arange(22.0).view(11, 2)
    queue.write(rows[:1])
    queue.write(rows[1:])
    assert torch.equal(queue.rows(), rows[-4:])
    assert int(queue.count) == 11


def test_rows_are_a_copy_that_a_later_write_does_not_change() -> None:
    queue = Queue(2, 2)
    queue.write(torch.ones(2, 2))
    rows = queue.rows()
    queue.write(torch.zeros(2, 2))
    assert torch.equal(rows, torch.ones(2, 2))
    queue.clear()
    assert len(queue.rows()) == len(queue) == 0


def test_a_queue_has_at_most_eight_rows_for_each_example() -> None:
    assert [capacity(1000, number) for number in (0, 1, 50, 500)] == [1, 8, 400, 1000]
    assert bundle(MoCo(queue_size=1000, hidden=8, dim=4), num_examples=50)["queue"][0].embeddings.shape == (400, 4)


def test_slices_are_normalised_apart_and_have_at_least_two_rows() -> None:
    rows, sizes = draws(6, 2), []

    def centred(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return part - part.mean(dim=0)

    expected = torch.cat((rows[:3] - rows[:3].mean(dim=0), rows[3:] - rows[3:].mean(dim=0)))
    torch.testing.assert_close(sliced(centred, rows, 2), expected)
    sliced(centred, rows[:5], 8)
    sliced(centred, rows[:1], 8)
    assert sizes == [3, 3, 3, 2, 1]


def keys_of_a_step(slices: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys of a step of 4 images, and those of the teacher on the same images in the given order."""
    objective, views = MoCo(hidden=8, dim=4, slices=slices), images(4)
    model = bundle(objective)

    def teacher(part: Tensor) -> Tensor:
        return model["teacher"]["projector"](model["teacher"]["backbone"](part))

    ordered = sliced(teacher, torch.cat(tuple(views))[order], slices)[order.argsort()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective.step(model, batch_of(*views))
    return torch.cat([queue.rows() for queue in model["queue"]]), unit(ordered.detach())


def test_an_order_alone_changes_no_key_but_slices_of_a_random_order_do() -> None:
    straight, random = torch.arange(8), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(*keys_of_a_step(1, straight))
    torch.testing.assert_close(*keys_of_a_step(2, random))
    found, unshuffled = keys_of_a_step(2, straight)
    assert not torch.allclose(found, unshuffled, atol=1e-3)


def test_a_step_finds_the_other_views_key_among_the_queue_and_then_writes_it() -> None:
    objective = MoCo(hidden=8, dim=4, slices=2)
    model = bundle(objective).eval()
    assert objective.step(model, batch_of(*images(4))).loss.item() == 0  # nothing is written yet
    negatives = [queue.rows() for queue in model["queue"]]
    views = images(4, seed=1)
    with torch.no_grad():
        model["teacher"]["projector"][0].weight.add_(0.1)
    queries = [model["projector"](model["backbone"](view)) for view in views]
    keys = [model["teacher"]["projector"](model["teacher"]["backbone"](view)) for view in views]
    one, other = (moco_loss(queries[i], keys[1 - i], negatives[1 - i], TEMPERATURE) for i in (0, 1))
    step = objective.step(model, batch_of(*views))
    torch.testing.assert_close(step.loss, (one + other) / 2)
    for queue, before, key in zip(model["queue"], negatives, keys, strict=True):
        torch.testing.assert_close(queue.rows(), torch.cat((before, unit(key.detach()))))
    step.loss.backward()
    assert all(parameter.grad is None for parameter in model["teacher"].parameters())
    assert model["backbone"].body[0][0].weight.grad.any()
    assert "embedding-std" in step.metrics


def test_given_the_queue_an_example_has_its_own_gradient() -> None:
    objective = MoCo(hidden=8, dim=4)
    model, (first, second) = bundle(objective).eval(), images(4)
    objective.step(model, batch_of(*images(3, seed=1)))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def gradient(part: list[int]) -> Tensor:
        model.load_state_dict(state)
        loss = objective.step(model, batch_of(first[part], second[part])).loss
        return torch.autograd.grad(loss, model["backbone"].body[0][0].weight)[0]

    whole = gradient([0, 1, 2, 3])
    torch.testing.assert_close(whole, torch.stack([gradient([i]) for i in range(4)]).mean(dim=0))
    assert objective.contract.coupling == "queue"


def test_a_client_that_comes_back_goes_on_with_the_same_bits() -> None:
    objective = MoCo(hidden=8, dim=4, slices=1)
    model, other = bundle(objective), bundle(objective)
    objective.step(model, batch_of(*images(4)))
    other.load_state_dict(model.state_dict())
    losses = []
    for each in (model, other):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            losses.append(objective.step(each, batch_of(*images(4, seed=1))).loss)
    assert torch.equal(*losses)
    assert torch.equal(model["queue"][1].rows(), other["queue"][1].rows())


def test_teacher_and_queue_stay_on_the_client() -> None:
    objective = MoCo(hidden=8, dim=4)
    assert list(bundle(objective)) == ["backbone", "projector", "teacher", "queue"]
    assert objective.contract.private_groups == {"teacher", "queue"}


def test_a_teacher_that_is_reset_leaves_no_keys_of_the_old_one() -> None:
    for teacher, left in (("keep", 4), ("ema_global", 4), ("reset", 0)):
        objective = MoCo(hidden=8, dim=4, teacher=teacher)
        model = bundle(objective)
        objective.step(model, batch_of(*images(4)))
        with torch.no_grad():
            model["projector"][0].weight.add_(1.0)
        objective.begin_round(model, first=False)
        assert [len(queue) for queue in model["queue"]] == [left, left]
        copied = torch.equal(model["teacher"]["projector"][0].weight, model["projector"][0].weight)
        assert copied == (teacher == "reset")


def test_the_teacher_follows_after_a_step() -> None:
    objective = MoCo(hidden=8, dim=4, momentum_start=0.5)
    model = bundle(objective)
    with torch.no_grad():
        model["projector"][0].weight.add_(1.0)
    objective.after_step(model, 0.0)
    gap = model["projector"][0].weight - model["teacher"]["projector"][0].weight
    torch.testing.assert_close(gap, torch.full_like(gap, 0.5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("queue_size", 0),
        ("hidden", 0),
        ("dim", 0),
        ("slices", 0),
        ("momentum_start", 2.0),
        ("momentum_end", -1.0),
    ],
)
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        MoCo(**{name: value})


def test_a_queue_without_rows_or_columns_is_refused() -> None:
    for size, dim, name in ((0, 1, "size"), (1, 0, "dim")):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Queue(size, dim)
