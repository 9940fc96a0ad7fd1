import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from fedssl.compose import load
from fedssl.config import build
from fedssl.data.arrays import ArrayDataset
from fedssl.data.file_dataset import FileDataset
from fedssl.data.overlap import overlap
from fedssl.data.partition import Iid, partition
from fedssl.data.partition_windows import ClientLists, Windows
from fedssl.errors import DataError


def classes_of(sizes: list[int]) -> ArrayDataset:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = tuple(f"class{number}" for number in range(len(sizes)))
    return ArrayDataset(labels, names, ("",) * len(labels), np.zeros((len(labels), 1, 1, 1, 1), np.uint8))


def test_two_windows_move_by_one_class_and_the_largest_class_is_left_out() -> None:
    dataset = classes_of([70, 10, 60, 20, 50, 30, 40, 80])
    # by size: 1 3 5 6 4 2 0 7; windows of two from both ends: {1, 3} {3, 5} and, without 7, {2, 0} {4, 2}
    parts = partition(dataset, Windows(4, width=2), 0)
    held = [sorted(set(dataset.labels[part].tolist())) for part in parts]
    assert held == [[0, 1, 2, 3], [2, 3, 4, 5], [0, 1, 2, 3], [2, 3, 4, 5]]
    assert not set(parts[0]) & set(parts[2])
    together = np.sort(np.concatenate([parts[0], parts[2]]))
    assert together.tolist() == np.flatnonzero(np.isin(dataset.labels, [0, 1, 2, 3])).tolist()


def test_the_halves_of_a_class_are_those_of_the_seeds_of_the_script() -> None:
    dataset = classes_of([5, 6, 7])
    members = list(range(5))
    Random(1234).shuffle(members)
    parts = partition(dataset, Windows(2, width=1), 0)
    assert parts[0][dataset.labels[parts[0]] == 0].tolist() == sorted(members[:2])


def test_the_windows_of_a_set_like_kinetics_use_106_of_400_classes_about_four_times() -> None:
    dataset = classes_of([10] * 400)
    report = overlap(dataset, partition(dataset, build(load(["partition=k400_paper_8c"]), "partition"), 0))
    assert set(report.classes_of_client.tolist()) == {8}
    assert np.count_nonzero(report.clients_of_class) == 106
    # a class in the middle of a window's way is in four windows, each time with one half at each of two clients
    assert np.bincount(report.clients_of_example).tolist() == [2940, 40, 40, 40, 940]
    assert report.text == "100 clients of 8 classes: 106 of 400 classes, 1060 of 4000 examples, 3.77 clients each"


def test_the_disjoint_split_uses_every_example_once() -> None:
    dataset = classes_of([10] * 400)
    report = overlap(dataset, partition(dataset, build(load(["partition=k400_disjoint_8c"]), "partition"), 0))
    assert report.text == "100 clients of 8 classes: 400 of 400 classes, 4000 of 4000 examples, 1.00 clients each"
    assert set(report.clients_of_class.tolist()) == {2}


def test_clients_of_uneven_numbers_of_classes_are_told() -> None:
    dataset = classes_of([2, 2])
    report = overlap(dataset, [np.array([0]), np.array([1, 2, 3])])
    assert report.text == "2 clients of 1 to 2 classes: 2 of 2 classes, 4 of 4 examples, 1.00 clients each"


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"partition\.num_clients must be at most 4 with these classes, got 6"):
        partition(classes_of([3] * 6), Windows(6), 0)
    with pytest.raises(ValueError, match=r"^num_clients must be even, got 3"):
        Windows(3)


def files(names: list[str]) -> FileDataset:
    paths = tuple(Path("root/train") / name for name in names)
    count = len(names)
    return FileDataset(paths, np.zeros(count, np.int64), ("a",), ("",) * count, lambda path: np.zeros(1, np.uint8))


def test_published_lists_are_found_by_the_names_of_videos(tmp_path: Path) -> None:
    dataset = files(["tai_chi/x_000001_000011.mp4", "tai_chi/y_000000_000010.mp4", "zumba/z_000000_000010.mkv"])
    for number, names in (
        (1, ["zumba/z_000000_000010", "tai_chi/x_000001_000011"]),
        (2, ["a/gone", "zumba/z_000000_000010"]),
    ):
        entries = [{"name": name, "label": 7} for name in names]
        (tmp_path / f"client_dist{number}.json").write_text(json.dumps(entries))
    parts = partition(dataset, ClientLists(str(tmp_path), 2), 0)
    assert [part.tolist() for part in parts] == [[0, 2], [2]]
    with pytest.raises(DataError, match=r"client_dist3\.json: cannot be read"):
        partition(dataset, ClientLists(str(tmp_path), 3), 0)
    (tmp_path / "client_dist2.json").write_text('[{"name": "a/gone"}]')
    with pytest.raises(ValueError, match="none for client 1"):
        partition(dataset, ClientLists(str(tmp_path), 2), 0)
    with pytest.raises(ValueError, match="needs a data set of files"):
        partition(classes_of([3, 3]), ClientLists(str(tmp_path), 2), 0)


def test_other_partitions_still_have_to_cover_everything_once() -> None:
    dataset = classes_of([3, 3])
    assert overlap(dataset, partition(dataset, Iid(2), 0)).clients_of_example.tolist() == [1] * 6
