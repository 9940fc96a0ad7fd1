"""L-DAWA: layers that count by their angle, by hand and against a slow version."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import test_resume

from fedssl.wire import LocalUpdate
from strategies.averaging import Averaging
from strategies.l_dawa import LDAWA, cosine

ROWS = {"equal": [6.0, 8.0], "right": [4.0, -3.0], "opposite": [-3.0, -4.0]}
CURRENT = {
    "backbone.w": np.array([3.0, 4.0], np.float32),
    "backbone.zero": np.zeros(2, np.float32),
    "backbone.scalar": np.array(-1.0, np.float32),
    "backbone.mean": np.array([3.0, 4.0], np.float32),
    "backbone.n": np.array(3, np.int64),
}
BUFFERS = frozenset({"backbone.mean", "backbone.n"})


def updates() -> Iterator[LocalUpdate]:
    for place, row in enumerate(ROWS.values()):
        arrays = {name: np.array(row, np.float32) for name in ("backbone.w", "backbone.zero", "backbone.mean")}
        arrays |= {"backbone.scalar": np.array(place, np.float32), "backbone.n": np.array(10 - place, np.int64)}
        yield LocalUpdate(place, 1, {name: arrays[name] for name in CURRENT}, 10 ** (place + 1), {})


def merged(**settings: bool | int) -> dict[str, np.ndarray]:
    strategy = LDAWA(warmup_rounds=0, **settings)
    strategy.buffers = BUFFERS
    return strategy.merge(CURRENT, updates(), 1)


def test_the_cosine_of_equal_right_opposite_and_missing_directions() -> None:
    w = CURRENT["backbone.w"]
    assert [cosine(np.array(row), w) for row in ROWS.values()] == pytest.approx([1, 0, -1], abs=1e-12)
    assert cosine(1e-30 * w, w) == pytest.approx(1)
    assert cosine(np.zeros(2), w) == cosine(w, np.zeros(2)) == 1
    values = np.random.default_rng(0).normal(size=1000)
    assert cosine(values, 3 * values) <= 1


def test_three_layers_by_hand() -> None:
    mean = merged()
    # cosines 1, 0 and -1: (1 * (6, 8) + 0 * (4, -3) - 1 * (-3, -4)) / 3
    assert mean["backbone.w"].tolist() == [3.0, 4.0]
    plain = np.mean(list(ROWS.values()), axis=0)
    assert mean["backbone.zero"] == pytest.approx(plain)  # no angle to a layer of zeros
    assert mean["backbone.mean"] == pytest.approx(plain)  # a running mean is no direction
    assert mean["backbone.scalar"] == 1.0
    assert mean["backbone.n"] == 10


def test_the_authors_code_multiplies_running_statistics_too() -> None:
    mean = merged(reference_compat=True)
    assert mean["backbone.mean"].tolist() == mean["backbone.w"].tolist() == [3.0, 4.0]
    assert mean["backbone.n"] == 10


def test_normalised_cosines_sum_to_1_in_size() -> None:
    mean = merged(normalize=True)
    assert mean["backbone.w"] == pytest.approx([4.5, 6.0])  # the sizes 1, 0 and 1 sum to 2
    assert mean["backbone.zero"] == pytest.approx(np.mean(list(ROWS.values()), axis=0))


def test_the_first_rounds_are_fedavg_to_the_bit() -> None:
    strategy = LDAWA(warmup_rounds=2)
    strategy.buffers = BUFFERS
    fedavg = Averaging().merge(CURRENT, updates(), 1)
    for number, same in ((1, True), (2, True), (3, False)):
        layer = strategy.merge(CURRENT, updates(), number)["backbone.w"]
        assert np.array_equal(layer, fedavg["backbone.w"]) == same


def test_updates_that_agree_with_the_global_direction_keep_it_and_others_shrink_the_norm() -> None:
    def norm(angle: float) -> float:
        rows = [np.array([np.cos(turn), np.sin(turn)]) for turn in (angle, -angle)]
        sent = (LocalUpdate(k, 1, {"backbone.w": row}, 1, {}) for k, row in enumerate(rows))
        return float(
            np.linalg.norm(LDAWA(warmup_rounds=0).merge({"backbone.w": np.array([1.0, 0.0])}, sent, 1)["backbone.w"])
        )

    assert norm(0.0) == pytest.approx(1, abs=1e-9)
    assert norm(0.5) == pytest.approx(np.cos(0.5) ** 2, abs=1e-9)


@pytest.mark.parametrize("normalize", [False, True])
def test_it_is_what_a_loop_over_layers_and_clients_gives(normalize: bool) -> None:
    rng = np.random.default_rng(1)
    shapes = {"backbone.a": (4, 3), "backbone.b": (5,), "head.c": (2, 2, 2)}
    current = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    sent = [{name: current[name] + rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(4)]
    mean = LDAWA(warmup_rounds=0, normalize=normalize).merge(
        current, (LocalUpdate(k, 1, arrays, k + 1, {}) for k, arrays in enumerate(sent)), 1
    )
    for name, layer in current.items():
        total, sizes = np.zeros_like(layer), 0.0
        for arrays in sent:
            delta = np.vdot(arrays[name], layer) / np.linalg.norm(arrays[name]) / np.linalg.norm(layer)
            total += delta * arrays[name]
            sizes += abs(delta)
        np.testing.assert_allclose(mean[name], total / (sizes if normalize else 4), atol=1e-9)


def test_names_and_dtypes_stay_and_no_update_is_held_for_long() -> None:
    mean = merged()
    assert {name: array.dtype for name, array in mean.items()} == {name: array.dtype for name, array in CURRENT.items()}
    held: list[weakref.ref] = []

    def watched() -> Iterator[LocalUpdate]:
        for number in range(6):
            assert all(reference() is None for reference in held[: max(0, number - 2)])
            array = np.full(2, number + 1.0)
            held.append(weakref.ref(array))
            yield LocalUpdate(number, 1, {"backbone.w": array}, 1, {})
            del array

    LDAWA(warmup_rounds=0).merge({"backbone.w": np.ones(2)}, watched(), 1)


def test_a_warm_up_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_rounds must be 0 or more, got -1"):
        LDAWA(warmup_rounds=-1)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["strategy=l_dawa", "strategy.warmup_rounds=1", "objective=cvrl"]
    monkeypatch.setitem(test_resume.STRATEGIES, "l_dawa", words)
    test_resume.test_an_interrupted_run_goes_on_to_the_same_bits("l_dawa", 3, tmp_path, monkeypatch)
