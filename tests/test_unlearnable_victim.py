import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedssl.privacy.unlearnable.defences.defence import Defence
from fedssl.privacy.unlearnable.defences.pixels import Grey
from fedssl.privacy.unlearnable.label_spaces import LabelSpace, clusters, relabelled, superclasses
from fedssl.privacy.unlearnable.measure import CLEAN, REST, Cell, Study, measure, psnr, rows
from fedssl.privacy.unlearnable.victim import ENCODERS, Recipe, Score, Supervised, accuracy, train_victim
from fedssl.seeding import generator

CPU = torch.device("cpu")
QUICK = Recipe(epochs=3, batch_size=32)


def squares(number: int, seed: int, size: int = 16) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return noise that is brighter in its left or its right half."""
    labels = np.arange(number) % 2
    images = generator(seed, "squares").integers(0, 100, (number, size, size, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, label * size // 2 : (label + 1) * size // 2] += 50
    return images, labels


def shortcut(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return images whose colour tells the label, and hides the rest."""
    changed = images.copy()
    changed[..., 0] = np.where(labels == 1, 255, 0)[:, None, None]
    return changed


def test_a_victim_learns_what_images_show() -> None:
    model = train_victim(*squares(160, 0), 2, QUICK, Defence(), 0, CPU)
    assert accuracy(model, *squares(80, 1)) > 0.9


def test_a_victim_of_a_shortcut_learns_it_instead() -> None:
    images, labels = squares(160, 0)
    protected = shortcut(images, labels)
    fooled = train_victim(protected, labels, 2, QUICK, Defence(), 0, CPU)
    assert accuracy(fooled, protected, labels) > 0.95
    assert accuracy(fooled, *squares(80, 1)) < 0.75


def test_the_same_seed_trains_the_same_bits_and_another_one_others() -> None:
    images, labels = squares(40, 0)
    recipe = replace(QUICK, epochs=1, augment=True)
    first, again, other = (train_victim(images, labels, 2, recipe, Defence(), seed, CPU) for seed in (0, 0, 1))
    assert all(
        torch.equal(*pair) for pair in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_victim_leaves_the_global_generators_as_they_were() -> None:
    before = torch.get_rng_state()
    train_victim(*squares(20, 0), 2, replace(QUICK, epochs=1), Defence(), 0, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_test_images_are_changed_only_where_it_is_asked_for() -> None:
    images, labels = squares(40, 0)
    model = train_victim(images, labels, 2, replace(QUICK, epochs=1), Grey(), 0, CPU)
    seen: list[bool] = []

    def watched(some: NDArray[np.uint8]) -> NDArray[np.uint8]:
        seen.append(True)
        return some

    model.change = watched
    accuracy(model, images, labels)
    assert not seen
    accuracy(model, images, labels, defended=True)
    assert seen


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_answers_with_as_many_logits_as_classes(name: str) -> None:
    images, labels = squares(4, 0, size=8)
    model = train_victim(images, labels, 3, Recipe(name, epochs=1), Defence(), 0, CPU)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_a_wrong_recipe_and_long_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model must be one of small_resnet, .*, got oracle"):
        Recipe("oracle")
    with pytest.raises(ValueError, match="width must be 8 as the height, got 6"):
        train_victim(np.zeros((2, 8, 6, 3), np.uint8), np.arange(2), 2, QUICK, Defence(), 0, CPU)


def space_of(train: list[int], test: list[int], name: str = "letters") -> LabelSpace:
    return LabelSpace(name, 3, np.array(train), np.array(test))


def test_chance_is_to_answer_the_most_frequent_training_class() -> None:
    assert space_of([0, 1, 1], [1, 0, 0, 2]).chance == 0.25


def test_superclasses_are_groups_of_names() -> None:
    merged = superclasses(space_of([0, 1, 2], [2, 2, 0]), ("a", "b", "c"), [("c",), ("a", "b")])
    assert (merged.num_classes, merged.name) == (2, "2 superclasses")
    assert (merged.train.tolist(), merged.test.tolist()) == ([1, 1, 0], [0, 0, 1])


@pytest.mark.parametrize("groups", [[("a", "b")], [("a", "b"), ("b", "c")], [("a", "b", "c", "d")]])
def test_groups_that_are_no_partition_are_refused(groups: list[tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="groups must have each of a, b, c once"):
        superclasses(space_of([0], [1]), ("a", "b", "c"), groups)


def test_clusters_give_a_test_image_the_nearest_mean() -> None:
    train = np.array([[0.0], [1.0], [10.0], [11.0]])
    found = clusters(train, np.array([[-3.0], [5.4], [5.6], [99.0]]), 2, seed=0)
    first, second = found.train[0], found.train[2]
    assert found.train.tolist() == [first, first, second, second]
    assert found.test.tolist() == [first, first, second, second]
    assert first != second


def test_more_clusters_than_images_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="num_clusters must be at most the 1 that differ, got 2"):
        clusters(np.zeros((4, 1)), np.zeros((1, 1)), 2, seed=0)


def test_random_labels_are_as_many_of_each_class_in_another_order() -> None:
    space = space_of([0, 1, 2] * 20, [0, 0, 1] * 20)
    dealt = relabelled(space, 0)
    assert np.bincount(dealt.train).tolist() == [20, 20, 20]
    assert np.bincount(dealt.test).tolist() == [40, 20]
    assert dealt.train.tolist() != space.train.tolist()


def test_a_label_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="labels of letters must be in 0 to 2, got 0 to 3"):
        space_of([0, 3], [0])


def test_psnr_of_an_error_of_one_level_is_that_of_eight_bits() -> None:
    clean = np.full((2, 4, 4, 3), 7, np.uint8)
    assert psnr(clean, clean) == math.inf
    assert psnr(clean, clean + np.uint8(1)) == pytest.approx(20 * math.log10(255), abs=1e-4)
    assert psnr(clean, clean + np.uint8(255)) == pytest.approx(20 * math.log10(255), abs=1e-4)  # 7 becomes 6
    assert psnr(np.zeros_like(clean), np.full_like(clean, 255)) == pytest.approx(0, abs=1e-6)


@dataclass(frozen=True)
class Counter:
    """Scores the share of its training images that are zero, and tells how many there were."""

    seen: list[tuple[int, Defence, int]] = field(default_factory=list, repr=False)

    def __call__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int, defence: Defence, seed: int
    ) -> Score:
        self.seen.append((len(images), defence, seed))
        share = float((images == 0).mean())
        return lambda test, truth: share


def study_of(victim: Counter) -> Study:
    ones = np.ones((10, 2, 2, 1), np.uint8)
    space = LabelSpace("halves", 2, np.arange(10) % 2, np.zeros(4, np.int64))
    return Study(
        train=ones,
        test=ones[:4],
        protected={"erased": ones * 0},
        spaces=[space],
        victims={"counter": victim},
        defences={"none": Defence(), "grey": Grey()},
    )


def test_a_fraction_protects_as_many_images_and_the_rest_is_what_is_left(tmp_path: Path) -> None:
    victim = Counter()
    study = study_of(victim)
    cells = study.cells([0, 1], ["none"], [1.0, 0.3])
    results = measure(study, cells, tmp_path / "cells.jsonl")
    by_kind = {(cell.protection, cell.fraction, cell.seed): result for cell, result in results.items()}
    for seed in (0, 1):
        assert by_kind[CLEAN, 1.0, seed] == 0
        assert by_kind[REST, 0.3, seed] == 0
        assert by_kind["erased", 1.0, seed] == 1
        assert by_kind["erased", 0.3, seed] == 0.3
    assert sorted(number for number, _, _ in victim.seen) == [7, 7, 10, 10, 10, 10, 10, 10]
    rest, whole = (study.job(Cell(name, 0.3, "halves", "counter", "none", 0)) for name in (REST, "erased"))
    # the protected images are exactly those that the rest lacks
    assert np.array_equal(rest.labels, whole.labels[whole.images[:, 0, 0, 0] == 1])


def test_what_is_done_is_read_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    first, again = Counter(), Counter()
    cells = study_of(first).cells([0], ["none", "grey"])
    results = measure(study_of(first), cells[:3], path)
    assert len(first.seen) == len(path.read_text().splitlines()) == 3
    with path.open("a") as stream:
        stream.write('{"key": "brok')  # as when the machine stops
    whole = measure(study_of(again), cells, path)
    assert len(again.seen) == len(cells) - 3 == 1
    assert {cell: whole[cell] for cell in cells[:3]} == results
    assert [json.loads(line)["accuracy"] for line in path.read_text().splitlines()] == list(whole.values())


def test_other_images_are_another_result(tmp_path: Path) -> None:
    victim = Counter()
    study = study_of(victim)
    cell = Cell("erased", 1.0, "halves", "counter", "none", 0)
    measure(study, [cell], tmp_path / "cells.jsonl")
    other = replace(study, protected={"erased": study.train})
    assert measure(other, [cell], tmp_path / "cells.jsonl") == {cell: 0.0}
    assert len(victim.seen) == 2


def test_a_row_holds_the_drop_the_gain_and_the_best_defence() -> None:
    study = study_of(Counter())
    results = {
        cell: {
            (CLEAN, "none"): 0.9,
            (CLEAN, "grey"): 0.8,
            (REST, "none"): 0.7,
            (REST, "grey"): 0.6,
            ("erased", "none"): 0.2 + 0.55 * (cell.fraction < 1) + 0.1 * cell.seed,
            ("erased", "grey"): 0.5,
        }[cell.protection, cell.defence]
        for cell in study.cells([0, 1], ["none", "grey"], [1.0, 0.5])
    }
    found = {(row.protection, row.fraction): row for row in rows(study, results)}
    assert list(found) == [(CLEAN, 1.0), (REST, 0.5), ("erased", 1.0), ("erased", 0.5)]
    row = found["erased", 1.0]
    assert row.drop == pytest.approx(0.65)
    assert (row.best, row.chance) == ("grey", 1.0)
    assert row.accuracies["none"] == pytest.approx([0.2, 0.3])
    assert row.psnr == pytest.approx(20 * math.log10(255), abs=1e-4)
    assert math.isnan(row.gain)
    assert found["erased", 0.5].gain == pytest.approx(0.1)
    assert found["erased", 0.5].best == "none"
    assert found[CLEAN, 1.0].drop == 0


def test_processes_find_what_one_finds(tmp_path: Path) -> None:
    images, labels = squares(24, 0, size=8)
    study = Study(
        train=images,
        test=images,
        protected={"shortcut": shortcut(images, labels)},
        spaces=[LabelSpace("sides", 2, labels, labels)],
        victims={"small": Supervised(Recipe(epochs=1, batch_size=8))},
        defences={"none": Defence(), "grey": Grey()},
    )
    cells = study.cells([0], ["none", "grey"])
    alone = measure(study, cells, tmp_path / "alone.jsonl")
    assert measure(study, cells, tmp_path / "together.jsonl", processes=2) == alone


def test_a_study_that_does_not_fit_is_refused() -> None:
    study = study_of(Counter())
    with pytest.raises(ValueError, match="defences must have none, got grey"):
        replace(study, defences={"grey": Grey()})
    with pytest.raises(ValueError, match="erased must have the shape"):
        replace(study, protected={"erased": study.train[:3]})
    with pytest.raises(ValueError, match="labels of letters must be 10 and 4, got 1 and 1"):
        replace(study, spaces=[space_of([0], [0])])
    with pytest.raises(ValueError, match="fraction must be above 0, got 0"):
        study.cells([0], ["none"], [0])
