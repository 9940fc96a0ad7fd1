from collections.abc import Callable

import numpy as np
import pytest

from fedssl.data.arrays import ArrayDataset
from fedssl.data.partition import ByOwner, ClassesPerClient, Dirichlet, Iid, Partitioner, counts, partition


def toy(labels: list[int], owners: list[str] | None = None) -> ArrayDataset:
    names = tuple(owners) if owners else ("",) * len(labels)
    classes = tuple("abcdefghij"[: max(labels) + 1])
    examples = np.zeros((len(labels), 1, 2, 2, 1), np.uint8)
    return ArrayDataset(np.array(labels, np.int64), classes, names, examples)


EVEN = toy([i % 4 for i in range(80)], [f"owner{i % 5}" for i in range(80)])
UNEVEN = toy([0] * 50 + [1] * 5 + [2] * 3 + [3] * 2, ["z"] * 10 + ["a"] * 50)
PARTITIONERS = [
    Iid(1), Iid(7), Dirichlet(6, 0.01), Dirichlet(6, 0.5, 5), Dirichlet(3, 1000.0), ClassesPerClient(4, 1),
    ClassesPerClient(4, 2), ClassesPerClient(2, 4), ByOwner(),
]  # fmt: skip


@pytest.mark.parametrize("dataset", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=repr)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_example_has_exactly_one_client(dataset: ArrayDataset, partitioner: Partitioner, seed: int) -> None:
    parts = partition(dataset, partitioner, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(dataset)))
    assert all(len(part) and part.dtype == np.int64 for part in parts)
    assert counts(dataset, parts).sum() == len(dataset)


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=repr)
def test_the_same_seed_gives_the_same_parts(partitioner: Partitioner) -> None:
    first, again = partition(EVEN, partitioner, 3), partition(EVEN, partitioner, 3)
    assert [part.tolist() for part in first] == [part.tolist() for part in again]


@pytest.mark.parametrize("partitioner", [Iid(7), Dirichlet(6, 0.5), ClassesPerClient(4, 2)], ids=repr)
def test_another_seed_gives_other_parts(partitioner: Partitioner) -> None:
    first, other = partition(EVEN, partitioner, 3), partition(EVEN, partitioner, 4)
    assert [part.tolist() for part in first] != [part.tolist() for part in other]


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = [len(part) for part in partition(EVEN, Iid(7), 0)]
    assert sorted(sizes) == [11, 11, 11, 11, 12, 12, 12]


def test_dirichlet_keeps_the_minimum_even_with_extreme_skew() -> None:
    for seed in range(20):
        sizes = [len(part) for part in partition(EVEN, Dirichlet(8, 0.001, min_examples=10), seed)]
        assert sizes == [10] * 8


def test_dirichlet_skews_more_when_alpha_is_small() -> None:
    def classes_seen(alpha: float) -> float:
        return float(np.mean([(counts(EVEN, partition(EVEN, Dirichlet(4, alpha), s)) > 0).sum() for s in range(10)]))

    assert classes_seen(0.05) < 10 < classes_seen(100.0) == 16


@pytest.mark.parametrize(("clients", "classes"), [(4, 1), (4, 2), (4, 3), (4, 4), (8, 2), (5, 3), (2, 2)])
def test_each_client_has_exactly_its_number_of_classes_and_every_class_a_client(clients: int, classes: int) -> None:
    table = counts(EVEN, partition(EVEN, ClassesPerClient(clients, classes), 0))
    assert ((table > 0).sum(axis=1) == classes).all()
    assert (table.sum(axis=0) == 20).all()


def test_a_class_of_two_examples_goes_to_at_most_two_clients() -> None:
    table = counts(UNEVEN, partition(UNEVEN, ClassesPerClient(5, 3), 0))
    assert ((table > 0).sum(axis=1) == 3).all()
    assert (table > 0).sum(axis=0).tolist() == [5, 5, 3, 2]


def test_owners_become_clients_in_the_order_of_their_names() -> None:
    parts = partition(UNEVEN, ByOwner(2), 0)
    assert parts[0].tolist() == list(range(10, 60))
    assert parts[1].tolist() == list(range(10))


def test_counts_are_examples_of_each_class_at_each_client() -> None:
    dataset = toy([0, 1, 1, 2])
    assert counts(dataset, [np.array([0, 1]), np.array([2, 3])]).tolist() == [[1, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Iid(0), "num_clients must be at least 1, got 0"),
        (lambda: Dirichlet(2, 0.0), "alpha must be above 0 and finite, got 0.0"),
        (lambda: Dirichlet(2, 1.0, 0), "min_examples must be at least 1, got 0"),
        (lambda: ClassesPerClient(2, 0), "classes_per_client must be at least 1, got 0"),
        (lambda: ByOwner(0), "num_clients must be at least 1, got 0"),
    ],
)
def test_a_bad_setting_is_named(build: Callable[[], Partitioner], text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared whole
        build()
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("partitioner", "text"),
    [
        (Iid(20), "partition.num_clients must be at most the 12 training examples, got 20"),
        (
            Dirichlet(5, 1.0, 3),
            "partition.min_examples must be at most 2 (12 training examples over 5 clients), got 3",
        ),
        (ClassesPerClient(2, 4), "partition.classes_per_client must be at most the 3 classes, got 4"),
        (ClassesPerClient(2, 1), "partition.classes_per_client must be at least 2 to cover the 3 classes, got 1"),
        (
            ClassesPerClient(6, 3),
            "partition.classes_per_client must be at most 2, since some classes have too few examples, got 3",
        ),
        (ByOwner(), "partition by owner needs an owner for every example, but the dataset has none for some"),
    ],
)
def test_what_cannot_be_divided_is_said_in_one_line(partitioner: Partitioner, text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared whole
        partition(toy([i % 3 for i in range(12)]), partitioner, 0)
    assert str(caught.value) == text


def test_a_wrong_number_of_owners_is_named() -> None:
    with pytest.raises(ValueError, match="num_clients must be the 2 owners or null, got 3"):
        partition(UNEVEN, ByOwner(3), 0)


@pytest.mark.parametrize("parts", [[[0, 1], [1]], [[0, 1, 2], []], [[0, 1]], []])
def test_a_partitioner_of_ones_own_is_checked(parts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="partition must"):
        partition(toy([0, 1, 0]), lambda dataset, seed: [np.array(p, np.int64) for p in parts], 0)
