"""Learning from few labels on a copy of the encoder."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedssl.arrays import sha256
from fedssl.data.arrays import ArrayDataset
from fedssl.evaluation.fine_tune import FineTune
from fedssl.evaluation.image_set import ImageSet, Views, image_features
from fedssl.evaluation.linear_probe import LinearProbe, standardisation
from fedssl.evaluation.sgd import Classifier, SgdSchedule, train_classifier
from fedssl.evaluation.subsets import labelled
from fedssl.models.image import small_resnet
from fedssl.seeding import derive

CPU = torch.device("cpu")
QUICK = FineTune(steps=15, batch_size=8, learning_rate=0.1, repeats=1)


def images(number: int, contrast: int, seed: int = 0) -> ArrayDataset:
    """Return noise in which the left or the right half is brighter by `contrast`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 2
    pixels = rng.integers(0, 120, (number, 1, 8, 8, 1))
    pixels[labels == 0, :, :, :4] += contrast
    pixels[labels == 1, :, :, 4:] += contrast
    return ArrayDataset(labels, ("left", "right"), ("",) * number, pixels.astype(np.uint8))


def image_set(number: int, contrast: int = 20, seed: int = 0, crop: float = 1.0) -> ImageSet:
    views = Views.of(8, 8, (crop, 1.0), flip=0.0, seed=0)
    return ImageSet(images(number, contrast, seed), np.arange(number), views, CPU)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return small_resnet(1, width=4)


def state(module: nn.Module) -> str:
    return sha256({name: value.numpy() for name, value in module.state_dict().items()})


def standard(network: nn.Module, train: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    return standardisation(torch.from_numpy(image_features(network, train, 64)))


def test_the_encoder_itself_is_not_touched() -> None:
    network, train = encoder().train(), image_set(20)
    network.body[1].eval()
    before = state(network), [(module.training, type(module)) for module in network.modules()]
    QUICK.accuracies(network, train, train, "100%", standard(network, train), 0)
    assert before == (state(network), [(module.training, type(module)) for module in network.modules()])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("amount", ["10%", "100%"])
def test_an_encoder_that_does_not_learn_is_a_linear_probe(amount: str) -> None:
    network, train, test = encoder(), image_set(40), image_set(300, seed=1)
    tuned = FineTune(steps=20, batch_size=8, learning_rate=0.05, encoder_factor=0.0, repeats=1)
    seed = derive(3, "fine_tune", 0)
    known = train.subset(labelled(train.labels, amount, seed))
    features = torch.from_numpy(image_features(network, known, 64))
    (accuracy,) = tuned.accuracies(network, train, test, amount, standardisation(features), 3)
    epochs = 20 // -(-len(known) // 8)
    probe = LinearProbe("sgd", learning_rates=[0.05], epochs=epochs, batch_size=8)
    fitted = probe.fit(features, torch.from_numpy(known.labels), 2, seed)
    asked = torch.from_numpy(image_features(network, test, 64))
    assert accuracy == fitted.accuracy(asked, torch.from_numpy(test.labels))
    assert 0.4 < accuracy < 1.0


def test_separable_images_are_told_apart_after_learning() -> None:
    network, train, test = encoder(), image_set(60, 130), image_set(30, 130, seed=1)
    (accuracy,) = replace(QUICK, steps=40).accuracies(network, train, test, "100%", standard(network, train), 0)
    assert accuracy == 1.0


def test_the_same_seed_gives_the_same_accuracies_and_leaves_other_streams_alone() -> None:
    network, train, test = encoder(), image_set(40, crop=0.3), image_set(200, seed=1)
    tuned, start = replace(QUICK, repeats=2), standard(network, train)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = tuned.accuracies(network, train, test, "20%", start, 0)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(6)
    assert tuned.accuracies(network, train, test, "20%", start, 0) == first
    assert len(first) == 2
    assert first[0] != first[1]


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_only_an_encoder_that_learns_changes_in_training(factor: float) -> None:
    network = encoder()
    classifier = Classifier(network, torch.zeros(16), torch.ones(16), 2)
    before, pixels = state(network), torch.rand(12, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = SgdSchedule(3, 5, 0.1, factor)
    train_classifier(classifier, lambda places, _: pixels[places], torch.arange(12) % 2, schedule, 0)
    assert (state(network) == before) == (factor == 0)
    assert classifier.weight.abs().sum() > 0


def test_every_example_is_seen_once_an_epoch_in_batches_of_nearly_one_size() -> None:
    seen: list[list[int]] = []

    def draw(places: np.ndarray, step: int) -> torch.Tensor:
        seen.append(places.tolist())
        return torch.zeros(len(places), 3)

    classifier = Classifier(nn.Identity(), torch.zeros(3), torch.ones(3), 2)
    train_classifier(classifier, draw, torch.zeros(9, dtype=torch.int64), SgdSchedule(6, 4, 0.1), 0)
    assert [len(places) for places in seen] == [3] * 6
    for epoch in (seen[:3], seen[3:]):
        assert sorted(np.concatenate(epoch)) == list(range(9))
    assert seen[:3] != seen[3:]


def test_a_loss_that_is_no_number_is_said_so() -> None:
    classifier = Classifier(nn.Identity(), torch.zeros(3), torch.ones(3), 2)
    with pytest.raises(FloatingPointError, match="nan at step 0"):
        train_classifier(
            classifier,
            lambda places, _: torch.full((len(places), 3), torch.nan),
            torch.zeros(4).long(),
            SgdSchedule(1, 4, 0.1),
            0,
        )


def test_a_view_of_an_image_does_not_depend_on_its_neighbours() -> None:
    everything = image_set(9, crop=0.3)
    together = everything.view(np.arange(9), "name", 1)
    alone = everything.subset(np.array([4])).view(np.array([0]), "name", 1)
    torch.testing.assert_close(alone[0], together[4], rtol=0, atol=1e-6)
    assert not torch.allclose(everything.view(np.arange(9), "name", 2), together)


def test_a_view_that_keeps_all_is_the_image() -> None:
    everything = image_set(5)
    torch.testing.assert_close(everything.view(np.arange(5), "name"), everything.clean(np.arange(5)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch_size", 2), ("repeats", 0), ("learning_rate", 0.0), ("encoder_factor", -0.1)],
)
def test_a_bad_setting_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        FineTune(**{name: value})
