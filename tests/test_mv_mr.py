import math

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.mv_mr import (
    MvMr,
    distance_correlation,
    local_deviations,
    mv_mr,
    oriented_gradients,
    representations,
)


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def model_of(objective: MvMr) -> nn.ModuleDict:
    return build_bundle(lambda: small_resnet(1, width=4, norm="group"), objective, seed=0).double()


def test_anything_depends_fully_on_itself() -> None:
    assert distance_correlation(rows(6, 3), rows(6, 3)).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("scale", [2.5, -0.3, 1e-6])
def test_rotating_scaling_and_shifting_leaves_full_dependence(scale: float) -> None:
    orthogonal, _ = torch.linalg.qr(rows(3, 3, seed=1))
    moved = scale * rows(6, 3) @ orthogonal + rows(1, 3, seed=2)
    assert distance_correlation(rows(6, 3), moved).item() == pytest.approx(1, abs=1e-9)


def test_a_full_factorial_pair_is_independent() -> None:
    assert distance_correlation(column(0, 0, 1, 1), column(0, 1, 0, 1)).item() == pytest.approx(0, abs=1e-9)


def test_the_opposite_of_a_binary_column_depends_on_it_fully() -> None:
    binary = column(0, 1, 1, 0, 1)
    assert distance_correlation(binary, 1 - binary).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_depends_on_nothing_and_has_no_gradient(constant: float) -> None:
    flat = torch.full((5, 2), constant, dtype=torch.float64, requires_grad=True)
    value = distance_correlation(flat, rows(5, 3))
    value.backward()
    assert value.item() == 0
    assert not flat.grad.any()
    assert distance_correlation(flat.detach(), flat.detach()).item() == 0


def test_the_correlation_is_that_of_a_slow_loop_and_has_its_gradient() -> None:
    first, second = rows(5, 3), rows(5, 2, seed=1)
    centred = []
    for side in (first.tolist(), second.tolist()):
        distance = [[math.dist(one, other) for other in side] for one in side]
        line = [sum(entries) / 5 for entries in distance]
        mean = sum(line) / 5
        centred.append([distance[i][j] - line[i] - line[j] + mean for i in range(5) for j in range(5)])
    product, one, other = (
        sum(x * y for x, y in zip(*pair, strict=True)) / 25
        for pair in (centred, (centred[0], centred[0]), (centred[1], centred[1]))
    )
    expected = math.sqrt(product / math.sqrt(one * other))
    assert distance_correlation(first, second).item() == pytest.approx(expected, abs=1e-9)
    assert distance_correlation(second, first).item() == pytest.approx(expected, abs=1e-9)
    for seed in range(3):
        pair = (rows(4, 3, seed=seed).requires_grad_(), rows(4, 2, seed=seed + 9).requires_grad_())
        assert torch.autograd.gradcheck(distance_correlation, pair)


def test_equal_rows_among_others_have_finite_gradients() -> None:
    twins = rows(4, 3)
    twins[1] = twins[0]
    twins.requires_grad_()
    distance_correlation(twins, rows(4, 2, seed=1)).backward()
    assert torch.isfinite(twins.grad).all()


def test_equal_spread_embeddings_that_resemble_the_features_cost_nothing() -> None:
    spread = 2 * torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    terms = mv_mr(spread, spread, [3 * spread + 1, spread.flip(1)])
    assert [term.item() for term in terms] == pytest.approx([0, 0, 0], abs=1e-9)


def test_constant_embeddings_cost_two_for_their_spread_and_one_for_each_dependence() -> None:
    constant = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    terms = mv_mr(constant, constant + 1, [rows(4, 3), rows(4, 5)])
    assert [term.item() for term in terms] == pytest.approx([1, 2, 3], abs=1e-9)
    sum(terms).backward()
    assert torch.isfinite(constant.grad).all()


def test_the_terms_are_those_of_a_slow_loop_and_have_their_gradient() -> None:
    augmented, clean, feature = 0.4 * rows(4, 3), 0.4 * rows(4, 3, seed=1), rows(4, 2, seed=2)
    difference = sum((a - c) ** 2 for a, c in zip(augmented.flatten().tolist(), clean.flatten().tolist(), strict=True))
    lacks = 0.0
    for side in (augmented, clean):
        for values in side.T.tolist():
            mean = sum(values) / 4
            lacks += max(0.0, 1 - math.sqrt(sum((value - mean) ** 2 for value in values) / 3)) / 3
    terms = mv_mr(augmented, clean, [feature])
    assert terms.difference.item() == pytest.approx(difference / 12, abs=1e-9)
    assert terms.variance.item() == pytest.approx(lacks, abs=1e-9)
    correlations = [distance_correlation(augmented, other).item() for other in (clean, feature)]
    assert terms.independence.item() == pytest.approx(2 - sum(correlations), abs=1e-9)
    inputs = (augmented.requires_grad_(), clean.requires_grad_())
    assert torch.autograd.gradcheck(lambda one, other: sum(mv_mr(one, other, [feature])), inputs)


def test_a_ramp_has_the_orientation_of_its_slope() -> None:
    ramp = torch.arange(16.0, dtype=torch.float64).expand(1, 1, 1, 16, 16)
    across = oriented_gradients(ramp).view(24, 4)  # a histogram in each of 2x2 cells
    assert not across[1:].any()
    down = oriented_gradients(ramp.mT).view(24, 4)
    assert not torch.cat((down[:12], down[13:])).any()
    # the difference over two pixels; one at the border, where a pixel is repeated
    torch.testing.assert_close(down[12], torch.full((4,), 15 / 8, dtype=torch.float64))
    between = oriented_gradients(ramp * math.cos(math.pi / 48) + ramp.mT * math.sin(math.pi / 48)).view(24, 4)
    torch.testing.assert_close(
        between[0] / between.sum(dim=0), torch.full((4,), 0.5, dtype=torch.float64), atol=0.05, rtol=0
    )


def test_an_orientation_is_that_of_the_line_not_of_its_brighter_side() -> None:
    clips = rows(2, 1, 1, 8, 8)
    torch.testing.assert_close(oriented_gradients(clips), oriented_gradients(-clips))


def test_histograms_are_those_of_a_slow_loop() -> None:
    clip = rows(5, 6)
    expected = torch.zeros(24, dtype=torch.float64)
    for row in range(5):
        for place in range(6):
            across = float(clip[row, min(place + 1, 5)] - clip[row, max(place - 1, 0)])
            down = float(clip[min(row + 1, 4), place] - clip[max(row - 1, 0), place])
            position = (math.atan2(down, across) % math.pi) / math.pi * 24
            low, share = int(position), position % 1
            expected[low % 24] += (1 - share) * math.hypot(across, down) / 30
            expected[(low + 1) % 24] += share * math.hypot(across, down) / 30
    torch.testing.assert_close(oriented_gradients(clip[None, None, None])[0], expected)


def test_local_deviations_are_those_of_a_slow_loop() -> None:
    clips = rows(1, 2, 1, 4, 5)
    expected = [
        clips[0, channel, 0, max(row - 1, 0) : row + 2, max(place - 1, 0) : place + 2].std(correction=0)
        for channel in range(2)
        for row in range(4)
        for place in range(5)
    ]
    torch.testing.assert_close(local_deviations(clips)[0], torch.stack(expected))
    assert local_deviations(torch.full((1, 1, 1, 4, 4), 0.3)).max() < 1e-3


def test_features_of_an_example_do_not_depend_on_its_batch() -> None:
    augmented, clean = rows(2, 3, 3, 1, 8, 8)
    together, alone = representations(augmented, clean), representations(augmented[:1], clean[:1])
    assert len(together) == 4
    for batch, one in zip(together, alone, strict=True):
        assert batch.shape[0] == 3
        torch.testing.assert_close(batch[:1], one)
    torch.testing.assert_close(together[0][0], clean[0].flatten())
    torch.testing.assert_close(together[1][0], augmented[0].flatten())


def test_a_step_joins_the_terms_of_the_augmented_and_the_clean_view() -> None:
    objective = MvMr(hidden=8, dim=4, norm="none")
    model = model_of(objective)
    views = rows(2, 5, 1, 1, 8, 8).sigmoid()
    step = objective.step(model, batch_of(*views))
    augmented, clean = (model["projector"](model["backbone"](view)) for view in views)
    torch.testing.assert_close(step.loss, sum(mv_mr(augmented, clean, representations(*views))))
    names = ["difference", "variance", "independence", "embedding-std", "embedding-rank", "embedding-cosine"]
    assert list(step.metrics) == names


def test_examples_of_a_batch_shape_each_others_gradients() -> None:
    objective = MvMr(hidden=8, dim=4, norm="none")
    model = model_of(objective)
    views = rows(2, 4, 1, 1, 8, 8).sigmoid()
    weight = model["projector"][0].weight
    (together,) = torch.autograd.grad(objective.step(model, batch_of(*views)).loss, weight)
    halves = [objective.step(model, batch_of(*half)).loss for half in (views[:, :2], views[:, 2:])]
    apart = torch.stack([torch.autograd.grad(loss, weight)[0] for loss in halves]).mean(dim=0)
    assert not torch.allclose(together, apart, rtol=1e-2)


@pytest.mark.parametrize("pixels", [torch.zeros(2, 2, 1, 1, 8, 8), torch.ones(2, 4, 1, 1, 8, 8)])
def test_the_smallest_batch_and_equal_images_have_finite_gradients(pixels: Tensor) -> None:
    objective = MvMr(hidden=8, dim=4)
    assert objective.min_batch == 2
    model = model_of(objective)
    objective.step(model, batch_of(*pixels.double())).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["hidden", "dim"])
def test_arguments_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        MvMr(**{name: 0})
