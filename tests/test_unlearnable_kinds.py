"""Noise of every kind keeps its budget and is the same for the same seed; each kind is what its paper says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_victim import apply_to_all, digits16, owned
from torch import nn

from fedssl.objectives.objective import CLASSIFIER
from fedssl.privacy.unlearnable.autoregressive import NEIGHBOURS, Autoregressive, draw_weights, process
from fedssl.privacy.unlearnable.error_minimising import ErrorMinimising
from fedssl.privacy.unlearnable.groups import by_class, by_cluster, by_sample, rows_of
from fedssl.privacy.unlearnable.linearly_separable import LinearlySeparable
from fedssl.privacy.unlearnable.protector import Owned, Protector
from fedssl.privacy.unlearnable.random_noise import RandomNoise

QUICK = {"width": 4, "min_rounds": 2, "max_rounds": 2, "step": 1.0}
KINDS: dict[str, Protector] = {
    **{f"random_{per}": RandomNoise(per=per) for per in ("sample", "class", "cluster")},
    **{f"em_{per}": ErrorMinimising(per=per, **QUICK) for per in ("sample", "class", "cluster")},
    **{f"lsp_{per}": LinearlySeparable(per=per) for per in ("class", "cluster")},
    **{f"ar_{per}": Autoregressive(per=per) for per in ("class", "cluster")},
}
NUMBER = 150


@pytest.mark.parametrize("name", KINDS)
def test_no_pixel_changes_by_more_than_the_budget_and_some_by_all_of_it(name: str) -> None:
    images = digits16()[0][:NUMBER]
    for budget in (1, 8):
        noise = replace(KINDS[name], budget=budget).fit(owned(NUMBER))
        assert np.abs(apply_to_all(noise, images).astype(int) - images).max() == budget
        assert noise.patterns.shape[1:] == (16, 16, 1)
        assert noise.rows.shape == (NUMBER,)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_seed_gives_the_same_noise_and_another_gives_other(name: str) -> None:
    torch.manual_seed(0)
    first = KINDS[name].fit(owned(NUMBER))
    drawn = torch.rand(1)
    second, other = KINDS[name].fit(owned(NUMBER)), KINDS[name].fit(owned(NUMBER, seed=1))
    assert np.array_equal(first.patterns, second.patterns)
    assert np.array_equal(first.rows, second.rows)
    assert not np.array_equal(first.patterns[first.rows], other.patterns[other.rows])
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))  # nobody else's numbers were taken


@pytest.mark.parametrize("name", KINDS)
def test_labels_are_read_only_where_they_are_needed(name: str) -> None:
    protector = KINDS[name]
    unlabelled = replace(owned(NUMBER), labels=np.full(NUMBER, -1), num_classes=0)
    assert protector.needs_labels == (name in {"random_class", "em_sample", "em_class", "lsp_class", "ar_class"})
    if not protector.needs_labels:
        assert np.array_equal(protector.fit(unlabelled).patterns, protector.fit(owned(NUMBER)).patterns)


def test_groups_are_the_example_its_class_or_its_cluster() -> None:
    assert by_sample(3).tolist() == [0, 1, 2]
    assert by_class(owned(5)).tolist() == digits16()[1][:5].tolist()
    features = np.array([[0.0, 0], [9, 9], [0, 1], [9, 8], [0, 0]])
    rows = by_cluster(features, 2, seed=0)
    assert rows[0] == rows[2] == rows[4] != rows[1] == rows[3]
    assert set(by_cluster(np.zeros((4, 2)), 3, seed=0)) <= {0, 1, 2}
    assert rows_of(owned(NUMBER), "cluster", 7)[1] == 7


def test_more_clusters_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="num_clusters must be between 1 and 5, got 6"):
        RandomNoise(per="cluster", num_clusters=6).fit(owned(5))


def test_random_noise_takes_every_level_as_often() -> None:
    patterns = RandomNoise(per="sample", budget=2).fit(owned(200)).patterns
    shares = np.bincount(patterns.ravel() + 2) / patterns.size
    assert shares == pytest.approx([0.2] * 5, abs=0.01)


def linear(weights: list[list[float]]) -> nn.ModuleDict:
    head = nn.Linear(4, 2, bias=False)
    head.weight.data = torch.tensor(weights, dtype=torch.float32)
    return nn.ModuleDict({"backbone": nn.Flatten(), CLASSIFIER: head})


def test_descent_moves_each_pixel_by_a_step_towards_its_class_and_stops_at_the_budget() -> None:
    model = linear([[1, -1, 2, 0], [-1, 1, 0, 0]])
    images, labels = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
    signs = torch.tensor([[1, -1, 1, 0], [-1, 1, -1, 0]]).view(2, 1, 2, 2)
    for inner_steps, size in ((1, 0.1), (3, 0.3), (20, 1.0)):
        protector = ErrorMinimising(budget=51, inner_steps=inner_steps)
        found = protector.descend(model, images, torch.zeros(2, 1, 2, 2), labels)
        torch.testing.assert_close(found, signs * size * 0.2)


def test_the_source_model_errs_less_and_less_on_protected_images() -> None:
    told: list[float] = []
    whole = owned(500, say=lambda what, done, total: told.append(float(what.rsplit(" ", 1)[1])))
    ErrorMinimising(budget=32, width=4, min_rounds=10, max_rounds=10).fit(whole)
    assert len(told) == 10
    assert told[0] > 0.5
    assert told[-1] < 0.1


def test_it_ends_at_the_first_pass_whose_error_is_small_enough() -> None:
    passes: list[int] = []
    whole = owned(NUMBER, say=lambda what, done, total: passes.append(done))
    ErrorMinimising(per="sample", stop_error=1.0, min_rounds=3, max_rounds=9, width=4).fit(whole)
    assert passes == [1, 2, 3]


def test_patches_are_squares_of_one_value_and_the_largest_is_the_budget() -> None:
    tall = Owned(np.zeros((2, 10, 16, 3), np.uint8), np.array([0, 1]), 2, seed=0)
    patterns = LinearlySeparable(patch=8, budget=20).fit(tall).patterns
    squares = patterns[:, ::8, ::8]
    assert squares.shape == (2, 2, 2, 3)
    assert np.array_equal(patterns, squares.repeat(8, axis=1).repeat(8, axis=2)[:, :10])
    assert np.abs(squares).max(axis=(1, 2, 3)).tolist() == [20, 20]


def test_each_value_of_a_process_follows_from_its_eight_neighbours() -> None:
    rng = np.random.default_rng(0)
    weights = draw_weights(3, 16, 16, rng)
    fields = process(weights, 2, 16, 16, rng)
    assert sorted(NEIGHBOURS) == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    for row, column in ((2, 2), (2, 9), (15, 15)):
        near = np.array([fields[:, row - up, column - left] for up, left in NEIGHBOURS])
        np.testing.assert_allclose(fields[:, row, column], (near * weights.T[:, None]).sum(axis=0))


def test_processes_neither_die_out_nor_explode() -> None:
    rng = np.random.default_rng(0)
    fields = process(draw_weights(20, 32, 32, rng), 8, 32, 32, rng)
    sizes = np.abs(fields).mean(axis=(0, 2))
    assert (sizes[-8:].mean(axis=0) / sizes[:8].mean(axis=0)).max() < 10
    assert np.median(sizes[-8:].mean(axis=0) / sizes[:8].mean(axis=0)) > 0.3


def test_a_filter_of_the_class_takes_autoregressive_noise_away_and_that_of_another_does_not() -> None:
    large = Owned(np.zeros((4, 40, 70, 1), np.uint8), np.array([0, 0, 1, 1]), 2, seed=0)
    patterns = Autoregressive(budget=100).fit(large).patterns[..., 0].astype(float)
    solved = [_weights_that_fit(pattern[:32, :32]) for pattern in patterns]
    left = np.array([[_rest(pattern[:32, 32:64], weights) for weights in solved] for pattern in patterns])
    assert left[:2, :2].max() < 3 < left[:2, 2:].min()
    assert left[2:, 2:].max() < 3 < left[2:, :2].min()


def _windows(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = field.shape
    near = [field[2 - up : height - up, 2 - left : width - left].ravel() for up, left in NEIGHBOURS]
    return np.stack(near, axis=1), field[2:, 2:].ravel()


def _weights_that_fit(field: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(*_windows(field), rcond=None)[0]


def _rest(field: np.ndarray, weights: np.ndarray) -> float:
    near, value = _windows(field)
    return float(np.sqrt(np.mean((value - near @ weights) ** 2)))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RandomNoise(budget=0), "budget must be between 1 and 255, got 0"),
        (lambda: RandomNoise(per="owner"), "per must be one of sample, class, cluster, got owner"),
        (lambda: LinearlySeparable(per="sample"), "per must be one of class, cluster, got sample"),
        (lambda: LinearlySeparable(patch=0), "patch must be at least 1, got 0"),
        (lambda: Autoregressive(num_clusters=0), "num_clusters must be at least 1, got 0"),
        (lambda: ErrorMinimising(step=0), "step must be above 0, got 0"),
        (lambda: ErrorMinimising(subset=1.5), "subset must be between 0 and 1, got 1.5"),
        (lambda: ErrorMinimising(max_rounds=3), "max_rounds must be at least 20, got 3"),
    ],
)
def test_a_bad_value_is_named(make: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()  # type: ignore[operator]
