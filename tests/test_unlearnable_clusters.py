from dataclasses import replace
from itertools import permutations
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from tiny_victim import accuracy, apply_to_all, digits16, owned
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from fedssl.compose import load
from fedssl.config import build
from fedssl.errors import ConfigError
from fedssl.privacy.unlearnable.clusters import UnlearnableClusters, clusters_of, distance, target_map
from fedssl.privacy.unlearnable.cut import WHOLE, cut
from fedssl.privacy.unlearnable.noise_generator import NoiseGenerator, _Mirror
from fedssl.privacy.unlearnable.random_noise import RandomNoise
from fedssl.privacy.unlearnable.surrogate import IMAGENET, features_of, make_surrogate, to_pixels
from fedssl.seeding import generator, torch_stream
from fedssl.training.augment import resize
from fedssl.training.transforms import crop

SMALL = UnlearnableClusters(
    budget=64, num_clusters=4, epochs=4, batch_size=32, learning_rate=1e-2, width=4, blocks=1, images="own", loss="l2"
)


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_a_cut_is_the_crop_that_augmentation_makes() -> None:
    images, rng = random(5, 3, 9, 12), generator(0, "boxes")
    boxes = np.concatenate((rng.uniform(0.2, 1, (5, 2)), rng.uniform(-0.4, 0.4, (5, 2))), axis=1)
    boxes[::2, 0] *= -1
    torch.testing.assert_close(cut(images, boxes, 7, 7), crop(images.unsqueeze(2), boxes, 7).squeeze(2))


def test_the_cut_of_the_whole_image_at_its_own_size_is_the_image() -> None:
    images = random(2, 1, 6, 8)
    torch.testing.assert_close(cut(images, WHOLE, 6, 8), images)


@pytest.mark.parametrize(("height", "width"), [(5, 5), (16, 16), (7, 10), (9, 32)])
def test_a_pattern_has_the_size_of_its_picture_and_stays_within_one(height: int, width: int) -> None:
    with torch_stream(0, "generator"):
        pattern = NoiseGenerator(3, 4, 1)(random(1, 3, height, width))
    assert pattern.shape == (1, 3, height, width)
    assert pattern.abs().max() <= 1


def test_a_picture_too_small_to_be_mirrored_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be at least 5, got 4"):
        NoiseGenerator(1, 4, 1)(random(1, 1, 8, 4))
    with pytest.raises(ValueError, match="images must be at least 5 pixels high and wide, got 4x16"):
        SMALL.fit(replace(owned(20), images=owned(20).images[:, :4]))


def test_mirroring_is_reflection_padding() -> None:
    images = random(2, 3, 5, 6)
    assert torch.equal(_Mirror(3)(images), nn.ReflectionPad2d(3)(images))


def test_each_cluster_is_moved_to_the_next_and_the_last_to_the_first() -> None:
    assert target_map(np.zeros((4, 2), np.float32), "shift").tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("number", range(2, 7))
def test_the_farthest_map_is_the_best_of_all_permutations_that_leave_none_in_place(number: int) -> None:
    centres = generator(number, "centres").normal(size=(number, 3)).astype(np.float32)
    found = target_map(centres, "farthest")
    assert not (found == np.arange(number)).any()

    def total(targets: tuple[int, ...]) -> float:
        return sum(float(np.linalg.norm(centres[i] - centres[j])) for i, j in enumerate(targets))

    moved = [each for each in permutations(range(number)) if all(i != j for i, j in enumerate(each))]
    assert total(tuple(found.tolist())) == pytest.approx(max(map(total, moved)), abs=1e-5)


def test_clusters_on_one_spot_are_still_moved() -> None:
    found = target_map(np.zeros((3, 2), np.float32), "farthest")
    assert sorted(found.tolist()) == [0, 1, 2]
    assert not (found == np.arange(3)).any()


def test_distances_of_two_features() -> None:
    features, centres = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, np.log(3)], [0.0, 0.0]])
    assert distance(features[1:], centres[1:], "l2").item() == pytest.approx(25)
    assert distance(features[1:], -features[1:], "cosine").item() == pytest.approx(2)
    # the target's softmax is (1/4, 3/4), the feature's (1/2, 1/2)
    wanted = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    assert distance(features[:1], centres[:1], "kl").item() == pytest.approx(wanted, abs=1e-6)


def test_clusters_that_stay_empty_are_left_out() -> None:
    features = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    rows, centres = clusters_of(features, 4, seed=0)
    assert sorted(centres.tolist()) == [[0, 1], [1, 0]]
    assert (centres[rows] == features).all()


def test_images_that_are_all_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="images must have features that differ, got all alike"):
        SMALL.fit(replace(owned(20), images=np.zeros((20, 16, 16, 1), np.uint8)))


def test_no_pixel_changes_by_more_than_the_budget_and_no_label_is_read() -> None:
    some = owned(80)
    noise = SMALL.fit(some)
    changed = apply_to_all(noise, some.images)
    assert noise.patterns.shape == (4, 16, 16, 1)
    assert np.abs(changed.astype(int) - some.images).max() <= 64
    again = SMALL.fit(replace(some, labels=np.full(80, -1)))
    assert (again.patterns == noise.patterns).all()
    assert (again.rows == noise.rows).all()
    assert (SMALL.fit(replace(some, seed=1)).patterns != noise.patterns).any()


@pytest.mark.parametrize("loss", ["kl", "l2", "cosine"])
@pytest.mark.parametrize("images", ["all", "own"])
def test_protected_images_are_nearer_to_the_wrong_centre(loss: str, images: str) -> None:
    some = owned(120)
    protector = replace(SMALL, loss=loss, images=images, epochs=2 if images == "all" else 8)
    noise = protector.fit(some)
    surrogate = make_surrogate(None, some, protector.surrogate_epochs, 2 * 64 / 255)
    before = features_of(surrogate, some)
    after = features_of(surrogate, replace(some, images=apply_to_all(noise, some.images)))
    rows, centres = clusters_of(before, 4, some.seed)
    assert (rows == noise.rows).all()
    wrong = torch.from_numpy(centres[target_map(centres, "shift")][rows])
    clean, moved = (distance(torch.from_numpy(each), wrong, loss).item() for each in (before, after))
    assert moved < 0.9 * clean


def test_cut_off_patterns_lie_on_the_budget_where_scaled_ones_lie_within() -> None:
    scaled, cut_off = (replace(SMALL, epochs=1, reference_compat=compat).fit(owned(40)) for compat in (False, True))
    assert (np.abs(cut_off.patterns) == 64).mean() > 0.7 > 0.3 > (np.abs(scaled.patterns) == 64).mean()


def test_a_surrogate_of_a_run_is_its_encoder_at_its_size(tmp_path: Path) -> None:
    config = load("data=digits height=12 width=12 model.width=4")
    with torch_stream(1, "other weights"):
        encoder = build(config, "model").eval()
    (tmp_path / "config.yaml").write_text(config.text)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    some = owned(5)
    with torch.no_grad():
        wanted = encoder(resize(torch.from_numpy(some.images).permute(0, 3, 1, 2).unsqueeze(2), 12, 12))
    for source in (tmp_path, tmp_path / "encoder.safetensors"):
        found = features_of(make_surrogate(str(source), some, 1, 0.1), some)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=f"surrogate must take images of 16x16x2, got {tmp_path}"):
        make_surrogate(str(tmp_path), replace(some, images=some.images.repeat(2, axis=3)), 1, 0.1)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the directory of a finished run"):
        make_surrogate(str(tmp_path), owned(5), 1, 0.1)


def test_the_surrogate_of_imagenet_is_the_network_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch_stream(0, "weights"):
        network = torchvision.models.resnet50().eval()
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda *_, **__: network.state_dict())
    some = owned(2)
    surrogate = make_surrogate(IMAGENET, some, 1, 0.1)
    network.fc = nn.Identity()
    pixels = cut(to_pixels(some.images, some.device), WHOLE, 224, 224).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        wanted = network((pixels - mean) / std).numpy()
    np.testing.assert_allclose(features_of(surrogate, some), wanted, rtol=1e-3, atol=1e-4)


def test_weights_that_cannot_be_downloaded_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no\nroute")

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", offline)
    with pytest.raises(ValueError, match=r"^surrogate must .* \(<urlopen error no route>\), got torchvision:resnet50$"):
        make_surrogate(IMAGENET, owned(2), 1, 0.1)


def test_clusters_cost_a_learner_more_than_random_patterns_of_clusters() -> None:
    images, labels, _, test_labels = digits16()
    protector = replace(SMALL, num_clusters=10, epochs=12, batch_size=64, width=8, blocks=2)
    noisy = apply_to_all(RandomNoise(per="cluster", budget=64).fit(owned()), images)
    protected = apply_to_all(protector.fit(owned()), images)
    assert accuracy(protected, labels, test_labels) <= accuracy(noisy, labels, test_labels) - 0.03
    parity = accuracy(protected, labels % 2, test_labels % 2)
    assert parity <= accuracy(images, labels % 2, test_labels % 2) - 0.03
