"""What clipping and noise are, and the places in which Flower's own utilities are something else."""

import math

import numpy as np
import pytest
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping, FedAvg
from flwr.supercore.differential_privacy import add_gaussian_noise_inplace, clip_inputs_inplace
from scipy.stats import chi2, kstest

from fedssl.privacy.clipping import blocks, change, clip_factor, clipped, noised_names, norm
from fedssl.privacy.noise import NoiseKey

KEY = NoiseKey.from_seed(0)


def test_what_is_longer_than_the_bound_is_scaled_to_it_and_the_rest_is_left() -> None:
    vector = {"a": np.array([3.0]), "b": np.array([[0.0, 4.0]])}
    assert norm(vector) == 5
    assert clipped(vector, 1.0)["a"] == pytest.approx([0.6])
    assert clipped(vector, 1.0)["b"] == pytest.approx(np.array([[0.0, 0.8]]))
    assert norm(clipped(vector, 5.0)) == 5
    assert (clipped(vector, 7.0)["b"] == vector["b"]).all()


@pytest.mark.parametrize("length", [0.0, 1e-320, 1e-9, 1.0, 1e30, 1e153])
def test_whatever_its_length_a_vector_ends_within_the_bound(length: float) -> None:
    assert norm(clipped({"a": np.array([length])}, 0.5)) <= 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_what_has_no_finite_length_counts_as_zero(value: float) -> None:
    """The square of 1e200 is infinite in double precision."""
    kept = clipped({"a": np.array([1.0, value]), "b": np.array(2.0)}, 1.0)
    assert [kept["a"].tolist(), kept["b"].tolist()] == [[0.0, 0.0], 0.0]
    assert [values.shape for values in kept.values()] == [(2,), ()]
    assert clip_factor(norm({"a": np.array([1.0, value])}), 1.0) == 0


def test_zero_stays_zero() -> None:
    assert clipped({"a": np.zeros(3)}, 1.0)["a"].tolist() == [0, 0, 0]
    assert clip_factor(0.0, 1.0) == 1


def test_a_number_alone_is_clipped_like_any_other_tensor() -> None:
    assert clipped({"temperature": np.array(100.0)}, 1.0)["temperature"] == pytest.approx(1.0)
    both = clipped({"temperature": np.array(3.0), "w": np.array([4.0])}, 1.0)
    assert [float(both["temperature"]), float(both["w"][0])] == pytest.approx([0.6, 0.8])


def test_counters_and_statistics_are_no_part_of_the_vector() -> None:
    arrays = {
        "bn.weight": np.ones(2, np.float32), "bn.running_mean": np.ones(2, np.float32),
        "bn.num_batches_tracked": np.array(100), "gate": np.array(1.0, np.float16),
    }  # fmt: skip
    buffers = frozenset({"bn.running_mean", "bn.num_batches_tracked"})
    assert noised_names(arrays, buffers) == ("bn.weight", "gate")
    assert noised_names(arrays, frozenset()) == ("bn.running_mean", "bn.weight", "gate")  # whole numbers are never


def test_changes_of_half_precision_are_measured_in_double() -> None:
    received, trained = {"w": np.full(4, 100, np.float16)}, {"w": np.full(4, 60000, np.float16)}
    moved = change(trained, received, ["w"])
    assert moved["w"].dtype == np.float64
    assert norm(moved) == pytest.approx(2 * (float(np.float16(60000)) - 100))  # in half precision: infinite


def test_blocks_are_the_groups() -> None:
    names = ("backbone.a", "backbone.b.c", "head.w", "projector.w")
    assert blocks(names) == [("backbone.a", "backbone.b.c"), ("head.w",), ("projector.w",)]


def test_noise_has_the_mean_and_the_spread_that_were_asked_for() -> None:
    noise = KEY.normal(0.25, (200, 100), "client", 1, "w")
    assert noise.dtype == np.float64
    number = noise.size
    low, high = chi2.ppf([0.0005, 0.9995], number)
    assert low < (noise / 0.25).ravel() @ (noise / 0.25).ravel() < high
    assert abs(noise.mean()) < 3.3 * 0.25 / math.sqrt(number)
    assert kstest(noise.ravel() / 0.25, "norm").pvalue > 1e-3


@pytest.mark.parametrize("other", [("client", 2, "w"), ("client", 1, "b"), ("local", 1, "w"), ("client", "1", "w")])
def test_the_noise_of_another_round_name_or_purpose_is_independent(other: tuple[int | str, ...]) -> None:
    first, second = KEY.normal(1.0, (20000,), "client", 1, "w"), KEY.normal(1.0, (20000,), *other)
    assert abs(np.corrcoef(first, second)[0, 1]) < 3.3 / math.sqrt(20000)


def test_a_key_and_a_path_name_the_noise() -> None:
    first = KEY.normal(1.0, (3,), "client", 1)
    assert (NoiseKey.from_seed(0).normal(1.0, (3,), "client", 1) == first).all()
    assert (NoiseKey.from_seed(1).normal(1.0, (3,), "client", 1) != first).all()
    assert NoiseKey.fresh().secret != NoiseKey.fresh().secret


def test_noise_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002 - the one that noise must not touch
    KEY.normal(1.0, (5,), "client", 1)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_no_noise_is_zero() -> None:
    assert KEY.normal(0.0, (2, 2), "client", 1).tolist() == [[0, 0], [0, 0]]


def test_a_key_is_never_printed() -> None:
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)
    assert KEY.fingerprint not in KEY.secret.hex()


def test_flower_divides_by_the_norm_of_a_client_that_changed_nothing() -> None:
    with pytest.raises(ZeroDivisionError), np.errstate(all="ignore"):
        clip_inputs_inplace([np.zeros(3)], 1.0)
    assert clipped({"a": np.zeros(3)}, 1.0)["a"].tolist() == [0, 0, 0]


def test_flower_leaves_a_number_alone_unclipped() -> None:
    number = np.array(100.0)
    update = [np.subtract(number, 0.0), np.array([0.0])]  # numpy makes a scalar of it, which is no array to change
    clip_inputs_inplace(update, 1.0)
    assert update[0] == 100
    assert clipped(change({"t": number}, {"t": np.array(0.0)}, ["t"]), 1.0)["t"] == pytest.approx(1.0)


def test_flower_shrinks_an_update_by_its_counter() -> None:
    update = np.array([0.87])
    factor = 1 / math.hypot(0.87, 100)
    clip_inputs_inplace([update, np.subtract(np.array(100), np.array(0))], 1.0)
    assert update == pytest.approx(0.87 * factor)  # a hundredth of what the clip would have let through
    moved = {"w": np.array([0.87]), "n": np.array(100)}
    came = {"w": np.array([0.0]), "n": np.array(0)}
    assert clipped(change(moved, came, noised_names(moved, ())), 1.0)["w"] == pytest.approx([0.87])


def test_flower_cannot_clip_whole_numbers() -> None:
    with pytest.raises(TypeError):  # numpy's casting error
        clip_inputs_inplace([np.array([3, 4])], 1.0)


def test_flower_passes_on_what_is_not_a_number() -> None:
    update = [np.array([math.nan, 1.0])]
    clip_inputs_inplace(update, 1.0)
    assert math.isnan(update[0][0])
    assert clipped({"a": np.array([math.nan, 1.0])}, 1.0)["a"].tolist() == [0, 0]


def test_flower_draws_noise_from_the_global_generator() -> None:
    before = np.random.get_state()  # noqa: NPY002
    first, second = [np.zeros(3)], [np.zeros(3)]
    add_gaussian_noise_inplace(first, 1.0)
    np.random.set_state(before)  # noqa: NPY002
    add_gaussian_noise_inplace(second, 1.0)
    np.random.set_state(before)  # noqa: NPY002
    assert (first[0] == second[0]).all()  # whoever seeds it knows the noise


def test_flower_lowers_the_clip_when_every_update_is_clipped_already() -> None:
    rule = DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 0.0, 1, clipped_count_stddev=0.0)
    before = rule.clipping_norm
    rule._geometric_update(1.0)  # the share that it hands to its rule is that of the clipped ones
    assert rule.clipping_norm < before
