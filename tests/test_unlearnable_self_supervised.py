from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedssl.compose import load
from fedssl.privacy.unlearnable.defences.defence import Defence
from fedssl.privacy.unlearnable.defences.names import NAMES, NONE, defence
from fedssl.privacy.unlearnable.self_supervised import SelfSupervised
from fedssl.seeding import generator

OVERRIDES = ["experiment=quickstart_images", "height=16", "width=16", "model.width=2", "client.batch_size=16"]
CLASSES = 3


def victim(epochs: int, words: Sequence[str] = ()) -> SelfSupervised:
    return SelfSupervised(load([*OVERRIDES, *words]), epochs)


def stripes(number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return grey noise of three kinds: without stripes, with upright ones, and with lying ones."""
    labels = np.arange(number) % CLASSES
    images = generator(0, "stripes").integers(0, 40, (number, 16, 16, 1), np.uint8)
    images[labels == 1, :, ::4] += 200
    images[labels == 2, ::4] += 200
    return images, labels


def score(epochs: int, how: Defence, seed: int = 0, labels: NDArray[np.int64] | None = None) -> float:
    images, truth = stripes(48)
    return victim(epochs)(images, truth if labels is None else labels, CLASSES, how, seed)(*stripes(60))


def test_a_linear_probe_tells_apart_what_an_encoder_sees() -> None:
    assert score(1, defence(NONE)) == 1


def test_labels_of_what_is_learned_from_are_not_read() -> None:
    learned = [
        victim(1, ["objective=byol"])(stripes(32)[0], labels, CLASSES, defence(NONE), 0)(*_noise(60))
        for labels in (stripes(32)[1], np.zeros(32, np.int64))
    ]
    assert learned[0] == learned[1]


def test_an_encoder_learns_from_the_images_that_it_is_given() -> None:
    grey, truth = stripes(32)
    learner = victim(3, ["optimizer.lr=0.1"])
    scores = {learner(images, truth, CLASSES, defence(NONE), 0)(*_noise(90)) for images in (grey, 255 - grey)}
    assert len(scores | {victim(0)(grey, truth, CLASSES, defence(NONE), 0)(*_noise(90))}) == 3


def test_the_same_seed_gives_the_same_score_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    assert score(1, defence(NONE), 3) == score(1, defence(NONE), 3)
    assert torch.equal(before, torch.get_rng_state())


def test_an_untrained_encoder_does_not_know_what_it_was_given() -> None:
    images, labels = stripes(32)
    scores = [victim(0)(some, labels, CLASSES, defence(NONE), 0)(*_noise(60)) for some in (images, 255 - images)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("name", NAMES)
def test_only_defences_that_change_images_alone_need_no_labels(name: str) -> None:
    images, labels = stripes(16)
    if name in ("none", "jpeg10", "jpeg30", "grey", "bits2", "blur"):
        victim(0)(images, labels, CLASSES, defence(name), 0)
    else:
        with pytest.raises(ValueError, match=r"^defence must change images alone without labels, got "):
            victim(0)(images, labels, CLASSES, defence(name), 0)


def test_a_negative_number_of_epochs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^epochs must be 0 or more, got -1$"):
        victim(-1)


def _noise(number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return generator(1, "noise").integers(0, 256, (number, 16, 16, 1), np.uint8), np.arange(number) % CLASSES
