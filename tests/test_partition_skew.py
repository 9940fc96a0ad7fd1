from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from fedssl.data.arrays import ArrayDataset
from fedssl.data.digits import digits
from fedssl.data.partition import Partitioner, Parts, counts, partition
from fedssl.data.partition_feature_skew import FeatureSkew
from fedssl.data.partition_semantic import Gaussians, Semantic
from fedssl.data.partition_sizes import apportion, top_up
from fedssl.data.partition_skew import QuantitySkew, Shards
from fedssl.data.pixels import styles, thumbnails


def pictures(labels: list[int], seed: int = 0) -> ArrayDataset:
    """Return noise of many brightnesses and contrasts, 6x6 RGB."""
    rng = np.random.default_rng(seed)
    shape = (len(labels), 1, 1, 1, 1)
    noise = rng.normal(0, 1, (len(labels), 1, 6, 6, 3))
    pixels = rng.uniform(50, 200, shape) + rng.uniform(2, 40, shape) * noise
    classes = tuple("abcdefghij"[: max(labels) + 1])
    examples = np.clip(pixels, 0, 255).astype(np.uint8)
    return ArrayDataset(np.array(labels, np.int64), classes, ("",) * len(labels), examples)


EVEN = pictures([i % 4 for i in range(80)])
UNEVEN = pictures([0] * 50 + [1] * 5 + [2] * 4 + [3])
PARTITIONERS = [
    Shards(1, 1), Shards(7, 1), Shards(6, 3), QuantitySkew(1), QuantitySkew(6, 0.01), QuantitySkew(7, 0.5, None, 8),
    QuantitySkew(6, None, 1.5), QuantitySkew(6, None, 0.0, 3), Semantic(1), Semantic(6), Semantic(7, 4, 8),
    FeatureSkew(1), FeatureSkew(7), FeatureSkew(6, ["contrast"], False), FeatureSkew(5, mix=0.5), FeatureSkew(6, mix=1),
]  # fmt: skip


@pytest.mark.parametrize("dataset", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=repr)
def test_every_example_has_exactly_one_client_and_every_client_its_minimum(
    dataset: ArrayDataset, partitioner: Partitioner
) -> None:
    for seed in range(10):
        parts = partition(dataset, partitioner, seed)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(dataset)))
        assert min(map(len, parts)) >= getattr(partitioner, "min_examples", 1)
        assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=repr)
def test_the_same_seed_gives_the_same_parts(partitioner: Partitioner) -> None:
    first, again = partition(EVEN, partitioner, 3), partition(EVEN, partitioner, 3)
    assert [part.tolist() for part in first] == [part.tolist() for part in again]


@pytest.mark.parametrize(
    "partitioner",
    [Shards(7), QuantitySkew(6), QuantitySkew(6, None, 1.0), Semantic(6), FeatureSkew(6, mix=0.5)],
    ids=repr,
)
def test_another_seed_gives_other_parts(partitioner: Partitioner) -> None:
    first, other = partition(EVEN, partitioner, 3), partition(EVEN, partitioner, 4)
    assert [part.tolist() for part in first] != [part.tolist() for part in other]


def test_two_shards_a_client_are_at_most_two_classes_and_equal_sizes() -> None:
    for seed in range(10):
        table = counts(EVEN, partition(EVEN, Shards(8, 2), seed))
        assert (table.sum(axis=1) == 10).all()
        assert ((table > 0).sum(axis=1) <= 2).all()


def test_shards_that_do_not_divide_evenly_differ_by_one_example() -> None:
    sizes = [len(part) for part in partition(EVEN, Shards(3, 1), 0)]
    assert sorted(sizes) == [26, 27, 27]


def test_sizes_follow_the_power_law_to_the_example() -> None:
    # one each comes first; the other 77 are divided as 1 to 1/2 to 1/3, which is 42, 21 and 14
    dataset = pictures([0] * 80)
    sizes = [len(part) for part in partition(dataset, QuantitySkew(3, None, 1.0, 1), 0)]
    assert sorted(sizes, reverse=True) == [43, 22, 15]
    assert sorted(len(part) for part in partition(dataset, QuantitySkew(4, None, 0.0), 0)) == [20] * 4


def test_a_small_alpha_makes_sizes_more_unequal() -> None:
    def largest(alpha: float) -> float:
        return float(np.mean([max(map(len, partition(EVEN, QuantitySkew(4, alpha), seed))) for seed in range(20)]))

    assert largest(0.05) > 60 > 35 > largest(10.0) > 20 == largest(1e9)


def test_quantity_skew_leaves_labels_mixed() -> None:
    dataset = pictures([i % 2 for i in range(2000)])
    for row in counts(dataset, partition(dataset, QuantitySkew(4, None, 1.0), 0)):
        assert abs(row[0] / row.sum() - 0.5) < 0.1


@pytest.mark.parametrize(
    ("total", "shares", "expected"),
    [(10, [1, 1, 1], [4, 3, 3]), (0, [1, 2], [0, 0]), (7, [0, 1], [0, 7]), (10, [0.6, 0.25, 0.15], [6, 3, 1])],
)
def test_the_largest_remainders_are_rounded_up(total: int, shares: list[float], expected: list[int]) -> None:
    assert apportion(total, np.array(shares, np.float64)).tolist() == expected


def test_whole_numbers_add_up_and_stay_within_one_of_their_share() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shares, total = rng.dirichlet(np.full(9, 0.1)), int(rng.integers(1000))
        whole = apportion(total, shares)
        assert whole.sum() == total
        assert (np.abs(whole - shares * total) < 1).all()


def test_only_the_largest_part_gives() -> None:
    parts = [[0, 1, 2, 3, 4, 5], [6], [7, 8], []]
    top_up(parts, 2, np.random.default_rng(0))
    assert [len(part) for part in parts] == [3, 2, 2, 2]
    assert parts[2] == [7, 8]


def two_styles(num_classes: int, each: int) -> tuple[ArrayDataset, NDArray[np.int64]]:
    """Return classes of two kinds of picture, light on the left and light on the right, and the kind of each."""
    rng = np.random.default_rng(0)
    kinds = np.arange(num_classes * each) % 2
    labels = np.arange(num_classes * each, dtype=np.int64) // each
    pixels = rng.integers(0, 40, (len(labels), 1, 8, 8, 1))
    for pixel, kind, label in zip(pixels, kinds, labels, strict=True):
        pixel[:, :, 4:] += 100 * kind
        pixel[:, :, :4] += 100 * (1 - kind)
        pixel += 20 * label
    classes = tuple("abcd"[:num_classes])
    return ArrayDataset(labels, classes, ("",) * len(labels), pixels.astype(np.uint8)), kinds


def test_a_semantic_client_holds_one_kind_of_picture_of_every_class() -> None:
    dataset, kinds = two_styles(4, 20)
    for seed in range(5):
        parts = partition(dataset, Semantic(2, 4), seed)
        assert sorted(set(kinds[part]) for part in parts) == [{0}, {1}]
        assert (counts(dataset, parts) == 10).all()


def test_the_divergence_of_gaussians_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    first, second = (Gaussians(rng.normal(size=(n, 3)), rng.uniform(0.1, 2, (n, 3))) for n in (4, 5))
    got = first.divergence(second)
    assert got.shape == (4, 5)
    for i in range(4):
        for j in range(5):
            ratio = first.variances[i] / second.variances[j]
            shift = (first.means[i] - second.means[j]) ** 2 / second.variances[j]
            assert got[i, j] == pytest.approx(0.5 * sum(ratio + shift - 1 - np.log(ratio)), abs=1e-9)
    assert np.allclose(np.diag(first.divergence(first)), 0, atol=1e-12)


def test_one_brightness_after_the_other_goes_to_the_clients_in_order() -> None:
    parts = partition(EVEN, FeatureSkew(5, ["brightness"], within_class=False), 0)
    light = styles(EVEN)["brightness"][:, 0]
    assert [len(part) for part in parts] == [16] * 5
    for darker, lighter in pairwise(parts):
        assert light[darker].max() <= light[lighter].min()


def test_comparing_within_classes_keeps_labels_even() -> None:
    # class 0 is dark and class 1 light: the slices of the whole order are the classes
    pixels = np.arange(80, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 1, 2, 2, 1), np.uint8)
    dataset = ArrayDataset(np.arange(80, dtype=np.int64) // 40, ("dark", "light"), ("",) * 80, pixels)
    apart = counts(dataset, partition(dataset, FeatureSkew(4, ["brightness"], within_class=False), 0))
    even = counts(dataset, partition(dataset, FeatureSkew(4, ["brightness"]), 0))
    assert apart.tolist() == [[20, 0], [20, 0], [0, 20], [0, 20]]
    assert even.tolist() == [[10, 10]] * 4


def test_every_chosen_measure_separates_clients_and_mixing_brings_them_together() -> None:
    def spread(parts: Parts, name: str) -> float:
        values = styles(EVEN)[name][:, 0]
        return float(np.var([values[part].mean() for part in parts]) / values.var())

    both = partition(EVEN, FeatureSkew(4, ["brightness", "contrast"], within_class=False), 0)
    assert spread(both, "brightness") > 0.5
    assert spread(both, "contrast") > 0.5
    mixed = partition(EVEN, FeatureSkew(4, ["brightness"], within_class=False, mix=1.0), 0)
    assert spread(mixed, "brightness") < 0.2


def test_sizes_of_styles_differ_by_at_most_one_whatever_the_number_of_clients() -> None:
    for clients in range(1, 81):
        sizes = [len(part) for part in partition(EVEN, FeatureSkew(clients), 0)]
        assert max(sizes) - min(sizes) <= 1


def test_measures_of_style_are_those_worked_out_by_hand() -> None:
    red, grey, stripes = np.zeros((3, 2, 4, 4, 3), np.uint8)
    red[..., 0] = 255
    grey[:] = 51
    stripes[:, :, ::2] = 255
    dataset = ArrayDataset(np.zeros(3, np.int64), ("a",), ("",) * 3, np.stack([red, grey, stripes]))
    measured = styles(dataset)
    assert measured["brightness"][:, 0] == pytest.approx([0.299, 0.2, 0.5], abs=1e-6)
    assert measured["contrast"][:, 0] == pytest.approx([0, 0, 0.5], abs=1e-6)
    assert measured["colour"] == pytest.approx(np.array([[1, 0.5], [0, 0], [0, 0]]), abs=1e-6)
    # 3 of 4 columns differ from the one before by 1: 12 of 16 pixels, relative to 0.5
    assert measured["sharpness"][:, 0] == pytest.approx([0, 0, 0.75 / (0.5 + 1 / 255)], abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24), (6, 5), (1, 1), (33, 47)])
def test_a_thumbnail_keeps_the_mean_and_the_gradient_of_any_size(height: int, width: int) -> None:
    column = (np.arange(width) + 0.5) / width
    clip = np.rint(255 * column)[None, None, None, :, None] * np.ones((1, 2, height, 1, 1))
    dataset = ArrayDataset(np.zeros(1, np.int64), ("a",), ("",), clip.astype(np.uint8))
    small = thumbnails(dataset).reshape(8, 8)
    assert small.mean() == pytest.approx(clip.mean() / 255, abs=1e-6)
    assert np.abs(small - small[0]).max() < 1e-6
    assert (np.diff(small[0]) >= -1e-6).all()


def test_examples_of_several_sizes_are_measured_one_by_one() -> None:
    class Mixed:
        labels, classes, owners = np.zeros(4, np.int64), ("a",), ("",) * 4

        def __len__(self) -> int:
            return 4

        def read(self, index: int) -> NDArray[np.uint8]:
            return np.full((1, 4 + index // 2, 5, 1), 50 * index, np.uint8)

    assert thumbnails(Mixed())[:, 0] == pytest.approx(np.array([0, 50, 100, 150]) / 255, abs=1e-6)
    assert [part.tolist() for part in partition(Mixed(), FeatureSkew(4), 0)] == [[0], [1], [2], [3]]


def test_real_digits_keep_their_classes_when_they_are_divided_by_style() -> None:
    train = digits().train
    table = counts(train, partition(train, FeatureSkew(4, ["brightness"]), 0))
    assert np.ptp(table, axis=0).max() <= 2
    table = counts(train, partition(train, Semantic(4), 0))
    assert (table > 0).all()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Shards(0), "num_clients must be at least 1, got 0"),
        (lambda: Shards(2, 0), "num_shards_per_client must be at least 1, got 0"),
        (lambda: QuantitySkew(2, 0.0), "alpha must be above 0 and finite, got 0.0"),
        (lambda: QuantitySkew(2, None, -1.0), "exponent must be at least 0 and finite, got -1.0"),
        (lambda: QuantitySkew(2, None, None), "exponent must be a number where alpha is null, got None"),
        (lambda: QuantitySkew(2, 0.5, 1.0), "exponent must be null where alpha is 0.5, got 1.0"),
        (lambda: QuantitySkew(2, min_examples=0), "min_examples must be at least 1, got 0"),
        (lambda: Semantic(2, 0), "num_components must be at least 1, got 0"),
        (
            lambda: FeatureSkew(2, ["hue"]),
            "statistics must be some of brightness, contrast, colour, sharpness, got hue",
        ),
        (lambda: FeatureSkew(2, []), "statistics must be some of brightness, contrast, colour, sharpness, got none"),
        (lambda: FeatureSkew(2, mix=1.5), "mix must be 0 to 1, got 1.5"),
    ],
)
def test_a_bad_setting_is_named(build: Callable[[], Partitioner], text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared whole
        build()
    assert str(caught.value) == text


PLACE = "12 training examples over 5 clients"


@pytest.mark.parametrize(
    ("partitioner", "text"),
    [
        (Shards(20), "partition.num_clients must be at most the 12 training examples, got 20"),
        (Shards(5, 3), f"partition.num_shards_per_client must be at most 2 ({PLACE}), got 3"),
        (QuantitySkew(5, min_examples=3), f"partition.min_examples must be at most 2 ({PLACE}), got 3"),
        (Semantic(5, 2, 3), f"partition.min_examples must be at most 2 ({PLACE}), got 3"),
        (Semantic(2, 13), "partition.num_components must be at most 12 (12 examples, 64 values each), got 13"),
        (FeatureSkew(20), "partition.num_clients must be at most the 12 training examples, got 20"),
        (FeatureSkew(2, ["colour"]), "partition.statistics must name one in which examples differ, got colour"),
    ],
)
def test_what_cannot_be_divided_is_said_in_one_line(partitioner: Partitioner, text: str) -> None:
    pixels = np.arange(12, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 1, 4, 4, 1), np.uint8)
    dataset = ArrayDataset(np.arange(12, dtype=np.int64) % 3, ("a", "b", "c"), ("",) * 12, pixels)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared whole
        partition(dataset, partitioner, 0)
    assert str(caught.value) == text
