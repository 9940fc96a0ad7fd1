"""Alignment and uniformity: values a reader can check by hand."""

import math

import pytest
import torch

from fedssl.objectives.align_uniform import AlignUniform, align_uniform


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_equal_embeddings_are_aligned_and_not_spread_at_all() -> None:
    same = torch.ones(5, 3, dtype=torch.float64)
    assert align_uniform(same, same, 1.0, 2.0).item() == pytest.approx(0, abs=1e-9)


def test_antipodal_examples_have_the_least_potential() -> None:
    poles = rows([1, 0], [-3, 0])
    assert align_uniform(poles, poles, 1.0, 2.0).item() == pytest.approx(-8, abs=1e-9)


def test_orthogonal_examples_and_a_view_at_a_right_angle() -> None:
    first, second = rows([1, 0, 0], [0, 1, 0]), rows([1, 0, 0], [0, 0, 1])
    assert align_uniform(first, second, 0.5, 2.0).item() == pytest.approx(1 - 0.5 * 4, abs=1e-9)


def test_the_loss_is_that_of_a_slow_loop_and_has_its_gradient() -> None:
    both = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    units = [[row / row.norm() for row in view] for view in both]
    aligned = sum(float((a - b).norm() ** 2) for a, b in zip(*units, strict=True)) / 4
    potentials = []
    for view in units:
        pairs = [math.exp(-3 * float((view[i] - view[j]).norm() ** 2)) for i in range(4) for j in range(i)]
        potentials.append(math.log(sum(pairs) / 6))
    expected = aligned + 0.7 * sum(potentials) / 2
    assert align_uniform(*both, 0.7, 3.0).item() == pytest.approx(expected, abs=1e-9)
    assert torch.autograd.gradcheck(lambda views: align_uniform(*views, 0.7, 3.0), both.requires_grad_())


@pytest.mark.parametrize("name", ["weight", "t", "hidden", "dim"])
def test_arguments_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        AlignUniform(**{name: 0})
