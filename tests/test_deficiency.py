"""Whose labels are known."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fedssl.compose import CONF
from fedssl.config import key_first
from fedssl.data.deficiency import AllLabels, Deficiency, Holdings, Indices, Known, PartialClient
from fedssl.data.deficiency_at_server import AtServer
from fedssl.data.deficiency_not_at_random import MissingNotAtRandom, cadr_counts, n0_counts
from fedssl.data.deficiency_partial_data import PartialData

# 3 clients: 12, 6 and 2 examples of classes a, b, c; examples 20 to 23 are nobody's
LABELS = np.array([0] * 7 + [1] * 4 + [2] + [0] * 5 + [2] + [1, 1] + [0, 1, 2, 2])
HOLDINGS = {0: np.arange(12), 1: np.arange(12, 18), 2: np.arange(18, 20)}
WAYS = [
    AllLabels(),
    PartialClient(3, 1),
    PartialData(share=0.3),
    PartialData(per_class=2),
    AtServer(5),
    MissingNotAtRandom("cadr", gamma=2),
    MissingNotAtRandom("n0", n0=3, num_labels=6),
]
OPTIONS = sorted((CONF / "labels").glob("*.yaml"))


def table(known: Indices, holdings: Holdings = HOLDINGS) -> list[list[int]]:
    return [np.bincount(LABELS[own][known[own]], minlength=3).tolist() for own in holdings.values()]


def classes(examples: Indices) -> list[int]:
    counts: list[int] = np.bincount(LABELS[examples], minlength=3).tolist()
    return counts


def bits(known: Known) -> tuple[list[bool], list[int]]:
    return known.labelled.tolist(), known.server.tolist()


@pytest.mark.parametrize("way", WAYS, ids=repr)
def test_the_same_seed_draws_the_same_and_nothing_that_is_nobodys_is_taken(way: Deficiency) -> None:
    first, again = way(LABELS, HOLDINGS, 3, 5), way(LABELS, HOLDINGS, 3, 5)
    assert bits(first) == bits(again)
    assert first.labelled.shape == LABELS.shape
    assert (np.diff(first.server) > 0).all()
    assert set(first.server) <= set(range(20))


@pytest.mark.parametrize("way", WAYS[1:], ids=repr)
def test_other_seeds_draw_others(way: Deficiency) -> None:
    assert len({str(bits(way(LABELS, HOLDINGS, 3, seed))) for seed in range(20)}) > 1


@pytest.mark.parametrize("way", [way for way in WAYS if way.on_devices], ids=repr)
def test_a_device_that_sees_its_own_client_alone_knows_the_same_labels(way: Deficiency) -> None:
    together = way(LABELS, HOLDINGS, 3, 1).labelled
    for client, own in HOLDINGS.items():
        alone = way(LABELS[own], {client: np.arange(len(own))}, 3, 1)
        assert alone.labelled.tolist() == together[own].tolist()
        assert len(alone.server) == 0


def test_everything_or_nothing_of_a_client_is_known() -> None:
    assert table(AllLabels()(LABELS, HOLDINGS, 3, 0).labelled) == [[7, 4, 1], [5, 0, 1], [0, 2, 0]]
    known = PartialClient(3, unlabelled=(0, 2))(LABELS, HOLDINGS, 3, 0)
    assert table(known.labelled) == [[0, 0, 0], [5, 0, 1], [0, 0, 0]]
    for seed in range(10):
        assert len(PartialClient(10, 4).without(seed)) == 6


def test_a_share_of_every_class_of_every_client_is_known() -> None:
    # 0.3 of 7, 4, 1, 5, 1, 2 examples are 2.1, 1.2, 0.3, 1.5, 0.3, 0.6: rounded, a half to even, and at least one
    known = PartialData(share=0.3)(LABELS, HOLDINGS, 3, 0).labelled
    assert table(known) == [[2, 1, 1], [2, 0, 1], [0, 1, 0]]
    assert known.sum() == 8
    assert table(PartialData(share=1.0)(LABELS, HOLDINGS, 3, 0).labelled) == [[7, 4, 1], [5, 0, 1], [0, 2, 0]]


def test_so_many_of_every_class_of_every_client_are_known() -> None:
    assert table(PartialData(per_class=2)(LABELS, HOLDINGS, 3, 0).labelled) == [[2, 2, 1], [2, 0, 1], [0, 2, 0]]


def test_who_knows_less_knows_a_part_of_it() -> None:
    few, many = (PartialData(per_class=number)(LABELS, HOLDINGS, 3, 0).labelled for number in (1, 3))
    assert not (few & ~many).any()
    low, high = (MissingNotAtRandom("cadr", gamma=gamma)(LABELS, HOLDINGS, 3, 0).labelled for gamma in (1, 2))
    assert not (low & ~high).any()


def test_the_server_takes_as_many_of_every_class_and_clients_know_no_label() -> None:
    holdings = {0: np.arange(0, 60), 1: np.arange(60, 119), 2: np.array([119])}
    labels = np.arange(120) % 3
    for seed in range(20):
        known = AtServer(44)(labels, holdings, 3, seed)
        assert np.bincount(labels[known.server]).tolist() == [15, 15, 14]
        assert not known.labelled.any()
        assert 119 not in known.server
    assert np.bincount(labels[AtServer(2)(labels, holdings, 3, 0).server]).tolist() == [1, 1]


def test_a_rare_class_is_taken_before_last_examples_are_many() -> None:
    # two examples of the last class, one of them at a client with two examples, and both are asked for
    labels, holdings = np.array([0] * 6 + [1, 1]), {0: np.array([0, 1, 2, 3, 4, 6]), 1: np.array([5, 7])}
    for seed in range(20):
        server = AtServer(4)(labels, holdings, 2, seed).server.tolist()
        assert {6, 7} < set(server)
        assert 5 not in server


def test_the_server_leaves_every_client_an_example() -> None:
    labels, holdings = np.zeros(6, np.int64), {0: np.arange(3), 1: np.arange(3, 5), 2: np.array([5])}
    for seed in range(20):
        taken = set(AtServer(3)(labels, holdings, 1, seed).server.tolist())
        assert [len(set(own.tolist()) - taken) for own in holdings.values()] == [1, 1, 1]
    with pytest.raises(ValueError, match=r"^num_labels must be at most 3 \(6 examples, .* 3 clients\), got 4$"):
        AtServer(4)(labels, holdings, 1, 0)


def test_a_class_that_clients_cannot_spare_is_named() -> None:
    text = r"^num_labels must be lower \(clients can spare 2 examples of class 2, not 3\), got 9$"
    with pytest.raises(ValueError, match=text) as raised:
        AtServer(9)(LABELS, HOLDINGS, 3, 0)
    assert key_first(str(raised.value)).startswith("num_labels=9: must be lower (clients")


def test_labels_of_cadr_fall_geometrically_to_one() -> None:
    # 27^(3/3), 27^(2/3), 27^(1/3), 27^0
    assert cadr_counts(27, 4).tolist() == [27, 9, 3, 1]
    assert cadr_counts(8, 4).tolist() == [8, 4, 2, 1]
    # 2, 1.41, 1 rounded up
    assert cadr_counts(2, 3).tolist() == [2, 2, 1]
    assert cadr_counts(1, 5).tolist() == [1] * 5
    assert cadr_counts(5, 1).tolist() == [5]
    # published: gamma 20, 50, 100 of CIFAR-10
    assert cadr_counts(20, 10).tolist() == [20, 15, 11, 8, 6, 4, 3, 2, 2, 1]
    assert cadr_counts(100, 10).tolist() == [100, 60, 36, 22, 13, 8, 5, 3, 2, 1]
    assert [int(cadr_counts(gamma, 10).sum()) for gamma in (20, 50, 100)] == [72, 143, 250]


@pytest.mark.parametrize(
    ("n0", "total", "counts"),
    [
        # 10 * 10^(-c/10) is 10, 7.9, 6.3, 5.01, 3.98, 3.2, 2.5, 1.995, 1.6, 1.3: one is missing, and class 1 gets it
        (10, 40, [10, 8, 6, 5, 3, 3, 2, 1, 1, 1]),
        (20, 40, [20, 9, 4, 1, 1, 1, 1, 1, 1, 1]),
        (40, 100, [40, 24, 14, 9, 5, 3, 2, 1, 1, 1]),
        (100, 250, [100, 60, 37, 22, 13, 8, 5, 3, 1, 1]),
        # the steepest is not steep enough, 200, 63, 20, 6, 2, 1, ...: inner classes give up 46 in turn
        (200, 250, [200, 42, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_labels_of_prg_are_the_published_ones(n0: int, total: int, counts: list[int]) -> None:
    assert n0_counts(n0, total, 10).tolist() == counts
    assert sum(counts) == total


def test_labels_of_prg_always_add_up_and_the_first_class_has_most() -> None:
    for num_classes in range(1, 9):
        for n0 in range(1, 9):
            for total in range(n0 + num_classes - 1, n0 * num_classes + 1):
                counts = n0_counts(n0, total, num_classes)
                assert counts.sum() == total
                assert counts[0] == n0 == counts.max()
                assert counts.min() >= 1
    with pytest.raises(ValueError, match=r"^num_labels must be between 12 and 30 \(n0=10, 3 classes\), got 11$"):
        n0_counts(10, 11, 3)
    with pytest.raises(ValueError, match="between 12 and 30"):
        n0_counts(10, 31, 3)


def test_labels_that_are_missing_not_at_random_are_exactly_those_counts() -> None:
    for seed in range(20):
        known = MissingNotAtRandom("cadr", gamma=4)(LABELS, HOLDINGS, 3, seed)
        assert classes(np.flatnonzero(known.labelled)) == [4, 2, 1]
        assert not known.labelled[20:].any()
        known = MissingNotAtRandom("n0", n0=5, num_labels=8)(LABELS, HOLDINGS, 3, seed)
        assert classes(np.flatnonzero(known.labelled)) == [5, 2, 1]


def test_a_class_with_too_few_examples_is_named() -> None:
    with pytest.raises(ValueError, match=r"^gamma must be lower \(class 0 has 12 examples, not 36\), got 36$"):
        MissingNotAtRandom("cadr", gamma=36)(LABELS, HOLDINGS, 3, 0)
    with pytest.raises(ValueError, match=r"^n0 must be lower \(class 2 has 2 examples, not 6\), got 6$"):
        MissingNotAtRandom("n0", n0=6, num_labels=18)(LABELS, HOLDINGS, 3, 0)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: PartialClient(3, 4), "num_labelled must be at most the 3 clients, got 4"),
        (lambda: PartialClient(3, unlabelled=(3,)), "unlabelled must be different numbers from 0 to 2, got [3]"),
        (lambda: PartialClient(None, 4), "num_clients must be a number, got None"),
        (lambda: PartialData(share=0.0), "share must be above 0 and at most 1, got 0.0"),
        (lambda: PartialData(share=float("nan")), "share must be above 0 and at most 1, got nan"),
        (lambda: PartialData(per_class=0), "per_class must be at least 1, got 0"),
        (lambda: PartialData(), "per_class must be a number where share is null, got None"),
        (lambda: PartialData(0.5, 3), "per_class must be null where share is 0.5, got 3"),
        (lambda: AtServer(0), "num_labels must be at least 1, got 0"),
        (lambda: AtServer(1, 0), "epochs must be at least 1, got 0"),
        (lambda: MissingNotAtRandom("darp"), "mode must be one of cadr, n0, got darp"),
        (lambda: MissingNotAtRandom("cadr"), "gamma must be a number where mode is cadr, got None"),
        (lambda: MissingNotAtRandom("cadr", 0.5), "gamma must be at least 1, got 0.5"),
        (lambda: MissingNotAtRandom("cadr", 2, 3), "n0 must be null where mode is cadr, got 3"),
        (lambda: MissingNotAtRandom("n0", None, 3), "num_labels must be a number where mode is n0, got None"),
        (lambda: MissingNotAtRandom("n0", 2, 3, 4), "gamma must be null where mode is n0, got 2"),
    ],
)
def test_a_bad_setting_is_named(build: Callable[[], Deficiency], text: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared whole
        build()
    assert str(raised.value) == text


def option(path: Path) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = OmegaConf.to_container(compose(f"labels/{path.stem}")["labels"])
    assert isinstance(values, dict)
    return {str(name): 10 if name == "num_clients" else value for name, value in values.items()}


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)
def test_every_option_names_all_of_its_settings(path: Path) -> None:
    assert path.read_text().startswith("# ")
    values = option(path)
    module, _, name = values.pop("_target_").rpartition(".")
    way = getattr(import_module(module), name)
    assert set(values) == set(inspect.signature(way).parameters)
    way(**values)


@pytest.mark.parametrize(
    ("name", "unlabelled"),
    [
        ("cifar10", {0, 2, 4, 5, 7, 9}),
        ("cifar100", {2, 3, 4, 5, 6, 9}),
        ("fashion_mnist", {0, 2, 4, 6, 7, 8}),
        ("svhn", {0, 3, 5, 6, 7, 8}),
    ],
)
def test_the_published_clients_of_twin_sight_know_no_label(name: str, unlabelled: set[int]) -> None:
    values = option(CONF / "labels" / f"twinsight_{name}.yaml")
    values.pop("_target_")
    assert PartialClient(**values).without(0) == unlabelled
