"""Robust server rules: a liar among five, by hand."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_runs import TINY, failed_run, result

from fedssl.errors import RunError
from fedssl.wire import LocalUpdate
from simulate import main
from strategies.averaging import Averaging
from strategies.base import Federated, Plan
from strategies.krum import Krum, krum_scores, squared_distances
from strategies.norm_bounded import NormBounded
from strategies.robust import Median, TrimmedMean

LIAR = 1e6
HONEST = [1.0, 2.0, 3.0, 4.0]
CURRENT = {
    "backbone.w": np.zeros(2, np.float32),
    "backbone.var": np.ones(1, np.float32),
    "backbone.n": np.array(0, np.int64),
}
BUFFERS = frozenset({"backbone.var", "backbone.n"})
RULES = [Median(), TrimmedMean(0.2), Krum(1), Krum(1, num_selected=2), NormBounded(4.0)]


def updates(values: list[float], examples: list[int] | None = None) -> Iterator[LocalUpdate]:
    for place, value in enumerate(values):
        arrays = {
            "backbone.w": np.array([value, -value], np.float32),
            "backbone.var": np.array([value], np.float32),
            "backbone.n": np.array(place, np.int64),
        }
        yield LocalUpdate(place, 1, arrays, (examples or [1] * len(values))[place], {})


def merged(strategy: Federated, values: list[float], examples: list[int] | None = None) -> dict[str, np.ndarray]:
    strategy.buffers = BUFFERS
    return strategy.merge(CURRENT, updates(values, examples), 1)


def test_the_median_takes_the_middle_or_the_mean_of_the_middle_two() -> None:
    mean = merged(Median(), [LIAR, *HONEST])
    assert mean["backbone.w"].tolist() == [3.0, -3.0]
    assert mean["backbone.var"].tolist() == [3.0]
    assert mean["backbone.n"] == 4
    assert merged(Median(), HONEST)["backbone.w"].tolist() == [2.5, -2.5]
    assert merged(Median(), [7.0])["backbone.w"].tolist() == [7.0, -7.0]


def test_each_coordinate_has_its_own_median() -> None:
    rows = [[0.0, 9.0, 5.0], [5.0, 0.0, 9.0], [9.0, 5.0, 0.0]]
    sent = (LocalUpdate(k, 1, {"backbone.w": np.array(row)}, 1, {}) for k, row in enumerate(rows))
    assert Median().merge({}, sent, 1)["backbone.w"].tolist() == [5.0, 5.0, 5.0]


def test_the_trimmed_mean_leaves_out_both_ends() -> None:
    assert merged(TrimmedMean(0.2), [LIAR, *HONEST])["backbone.w"].tolist() == [3.0, -3.0]  # of 2, 3 and 4
    assert merged(TrimmedMean(0.4), [LIAR, *HONEST])["backbone.w"].tolist() == [3.0, -3.0]  # of 3
    assert merged(TrimmedMean(0.39), [LIAR, *HONEST])["backbone.w"].tolist() == [3.0, -3.0]  # 1.95 is 1 at each end
    assert merged(TrimmedMean(0.25), [1.0, 2.0, 4.0, -LIAR])["backbone.w"].tolist() == [1.5, -1.5]
    hundred = list(np.arange(100.0))
    assert merged(TrimmedMean(0.29), [*hundred[:70], *[LIAR] * 30])["backbone.w"][0] == pytest.approx(
        (sum(hundred[29:70]) + LIAR) / 42
    )


def test_a_trim_of_0_is_the_plain_mean_and_one_that_would_cut_nothing_is_refused() -> None:
    assert merged(TrimmedMean(0.0), HONEST, [1, 1, 1, 100])["backbone.w"] == pytest.approx([2.5, -2.5])
    with pytest.raises(RunError, match=r"round 1: strategy\.trim=0\.2 needs at least 5 updates, got 4"):
        merged(TrimmedMean(0.2), HONEST)


def test_krum_takes_the_update_with_the_nearest_neighbours_whole() -> None:
    values = [0.0, 1.0, 2.5, 4.5, 100.0]
    # of five with one liar the two nearest count; squared distances of one coordinate: 0: 1 + 6.25, 1: 1 + 2.25,
    # 2.5: 2.25 + 4, 4.5: 4 + 12.25, 100: 95.5 ** 2 + 97.5 ** 2
    line = np.array(values)
    scores = krum_scores(np.square(line[:, None] - line), 1)
    assert scores == pytest.approx([7.25, 3.25, 6.25, 16.25, 95.5**2 + 97.5**2], abs=1e-9)
    mean = merged(Krum(1), values)
    assert {name: array.tolist() for name, array in mean.items()} == {
        "backbone.w": [1.0, -1.0], "backbone.var": [1.0], "backbone.n": 1,
    }  # fmt: skip
    assert merged(Krum(1, num_selected=2), values)["backbone.w"].tolist() == [1.75, -1.75]  # the mean of 1 and 2.5


def test_a_tie_goes_to_the_first_of_the_cohort() -> None:
    assert merged(Krum(0), [1.0, 2.0, 3.0, 4.0])["backbone.w"].tolist() == [2.0, -2.0]
    assert merged(Krum(0), [4.0, 3.0, 2.0, 1.0])["backbone.w"].tolist() == [3.0, -3.0]


def test_distances_are_those_of_whole_updates_without_counters() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 70_000), "b": (), "c": (5,)}
    sent = [{name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()} for _ in range(4)]
    flat = np.stack([np.concatenate([array.reshape(-1) for array in one.values()]) for one in sent]).astype(float)
    expected = [[np.square(x - y).sum() for y in flat] for x in flat]
    with_counters = [{**one, "n": np.array(1000 * place)} for place, one in enumerate(sent)]
    np.testing.assert_allclose(squared_distances(with_counters), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("strategy", "number", "text"),
    [
        (Krum(2), 6, r"strategy\.num_byzantine=2 needs at least 7 updates, there are 6"),
        (Krum(0), 2, r"strategy\.num_byzantine=0 needs at least 3 updates, there are 2"),
        (Krum(1, num_selected=3), 5, r"strategy\.num_selected=3 needs at least 6 updates, there are 5"),
    ],
)
def test_krum_says_when_there_are_too_few_updates_before_and_after_they_train(
    strategy: Krum, number: int, text: str
) -> None:
    with pytest.raises(RunError, match=f"round 2: {text}"):
        strategy.task(CURRENT, 2, Plan(3, 0, 20, number, None))
    with pytest.raises(RunError, match=f"round 2: {text}"):
        strategy.merge(CURRENT, updates([1.0] * number), 2)
    assert strategy.task(CURRENT, 2, Plan(3, 0, 20, None, None)).arrays is CURRENT


def test_the_norm_bounded_mean_scales_differences_into_the_ball() -> None:
    current = {"backbone.w": np.array([1.0, 1.0]), "head.w": np.array([0.0]), "backbone.var": np.array([1.0])}
    strategy = NormBounded(max_norm=1.3)
    strategy.buffers = BUFFERS
    # the difference (3, 4) and 12 has norm 13: a tenth of it is left; the buffer neither counts nor changes
    arrays = {"backbone.w": np.array([4.0, 5.0]), "head.w": np.array([12.0]), "backbone.var": np.array([500.0])}
    mean = strategy.merge(current, iter([LocalUpdate(0, 1, arrays, 5, {})]), 1)
    assert mean["backbone.w"] == pytest.approx([1.3, 1.4], abs=1e-9)
    assert mean["head.w"] == pytest.approx([1.2], abs=1e-9)
    assert mean["backbone.var"].tolist() == [500.0]


def test_a_ball_that_holds_every_update_gives_fedavg_to_the_bit_and_a_liar_reaches_no_further() -> None:
    examples = [3, 1, 4, 1, 5]
    fedavg, bounded = (
        merged(Averaging(), [*HONEST, 5.0], examples),
        merged(NormBounded(100.0), [*HONEST, 5.0], examples),
    )
    assert all(np.array_equal(fedavg[name], bounded[name]) for name in fedavg)
    mean = merged(NormBounded(np.sqrt(2.0)), [*HONEST, LIAR])  # every value becomes 1
    assert mean["backbone.w"] == pytest.approx([1.0, -1.0])
    assert mean["backbone.n"] == 4


def test_the_norm_bounded_mean_holds_no_update_for_long() -> None:
    held: list[weakref.ref] = []

    def watched() -> Iterator[LocalUpdate]:
        for number in range(6):
            assert all(reference() is None for reference in held[: max(0, number - 2)])
            array = np.full(2, number + 1.0)
            held.append(weakref.ref(array))
            yield LocalUpdate(number, 1, {"backbone.w": array}, 1, {})
            del array

    NormBounded(1.0).merge({"backbone.w": np.zeros(2)}, watched(), 1)


@pytest.mark.parametrize("strategy", RULES, ids=lambda rule: f"{type(rule).__name__}")
def test_a_liar_among_five_is_kept_within_the_honest_and_dtypes_stay(strategy: Federated) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = [*rng.permutation([*HONEST, LIAR * rng.choice([-1, 1])])]
        mean = merged(strategy, values)
        assert abs(mean["backbone.w"][0]) <= max(HONEST)
        assert {name: array.dtype for name, array in mean.items()} == {
            name: array.dtype for name, array in CURRENT.items()
        }
        assert mean["backbone.n"].shape == ()


def test_float64_sums_do_not_lose_small_differences() -> None:
    values = [np.float32(1 + k * 2.0**-22) for k in range(5)]
    assert merged(TrimmedMean(0.2), values)["backbone.w"][0] == values[2]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TrimmedMean(0.5), r"trim must be from 0 to below 0\.5, got 0\.5"),
        (lambda: TrimmedMean(-0.1), "trim must be"),
        (lambda: Krum(-1), "num_byzantine must be 0 or more, got -1"),
        (lambda: Krum(1, num_selected=0), "num_selected must be at least 1, got 0"),
        (lambda: NormBounded(0.0), r"max_norm must be above 0, got 0\.0"),
    ],
)
def test_arguments_out_of_range_are_refused(make: type[Federated], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "norm_bounded"])
def test_a_whole_run(name: str, tmp_path: Path) -> None:
    run = [*TINY, "engine=local", "objective=cvrl", "rounds=1", "partition.num_clients=6", "cohort=5"]
    assert main([*run, f"strategy={name}", f"run_dir={tmp_path / 'run'}"]) == 0
    assert result(tmp_path / "run")["failures"] == 0


def test_a_run_that_cannot_be_robust_ends_before_anybody_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failed_run([*TINY, "strategy=krum"], tmp_path / "run", capsys)
    assert "round 1: strategy.num_byzantine=1 needs at least 5 updates, there are 3" in line
