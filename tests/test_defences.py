import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.privacy.unlearnable.defences.adversarial import Adversarial
from fedssl.privacy.unlearnable.defences.defence import Defence
from fedssl.privacy.unlearnable.defences.mixing import CutMix, Cutout, Mixup
from fedssl.privacy.unlearnable.defences.names import NAMES, defence
from fedssl.privacy.unlearnable.defences.pixels import BitDepth, Blur, Grey, Jpeg
from fedssl.privacy.unlearnable.defences.projection import Projection
from fedssl.privacy.unlearnable.defences.shift_flip import ShiftFlip
from fedssl.privacy.unlearnable.defences.strong import Strong, UEraser
from fedssl.seeding import generator, torch_stream

LABELS = np.arange(12) % 3


def photos(number: int = 12, size: int = 16, channels: int = 3) -> NDArray[np.uint8]:
    return generator(0, "photos").integers(0, 256, (number, size, size, channels), np.uint8)


def batch() -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(photos()).permute(0, 3, 1, 2).float() / 255
    return images, F.one_hot(torch.from_numpy(LABELS), 3).float()


def linear() -> nn.Module:
    with torch_stream(0, "linear"):
        return nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 3))


def changed(kind: Defence, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return kind.change(images, LABELS, 0)(images)


def everything(kind: Defence, seed: int) -> tuple[NDArray[np.uint8], Tensor, Tensor]:
    images, targets = kind.batch(*batch(), generator(seed))
    attacked = kind.attack(linear(), images, targets, generator(seed, "attack"))
    return kind.change(photos(), LABELS, seed)(photos()), attacked, targets


@pytest.mark.parametrize("name", NAMES)
def test_every_defence_keeps_shapes_types_and_ranges_and_leaves_what_it_is_given(name: str) -> None:
    images, given = photos(), photos()
    pixels = defence(name).change(images, LABELS, 0)(images)
    assert np.array_equal(images, given)
    assert (pixels.shape, pixels.dtype) == (given.shape, np.uint8)
    clips, targets = batch()
    seen, wanted = defence(name).batch(clips, targets, generator(0))
    attacked = defence(name).attack(linear(), seen, wanted, generator(0))
    assert torch.equal(clips, batch()[0])
    assert torch.equal(targets, batch()[1])
    assert (attacked.shape, attacked.dtype, wanted.shape) == (clips.shape, clips.dtype, targets.shape)
    assert not attacked.requires_grad
    assert 0 <= attacked.min() <= attacked.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    first, second = everything(defence(name), 3), everything(defence(name), 3)
    assert np.array_equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[2], second[2])


@pytest.mark.parametrize("name", ["shift_flip", "cutout", "mixup", "cutmix", "strong", "ueraser", "adversarial"])
def test_another_seed_draws_something_else(name: str) -> None:
    assert not torch.equal(everything(defence(name), 3)[1], everything(defence(name), 4)[1])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mixup", "cutmix")])
def test_labels_stay_unless_images_are_mixed(name: str) -> None:
    assert torch.equal(defence(name).batch(*batch(), generator(0))[1], batch()[1])


def test_an_unknown_defence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"defence must be one of none, .*, got prayer"):
        defence("prayer")


def test_no_defence_changes_nothing() -> None:
    pixels, attacked, targets = everything(Defence(), 0)
    assert np.array_equal(pixels, photos())
    assert torch.equal(attacked, batch()[0])
    assert torch.equal(targets, batch()[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_changes_noise_and_keeps_an_image_of_one_level(channels: int) -> None:
    noise, flat = photos(channels=channels), np.full((2, 16, 16, channels), 128, np.uint8)
    assert (changed(Jpeg(10), noise) != noise).mean() > 0.9
    assert np.array_equal(changed(Jpeg(10), flat), flat)


def test_jpeg_of_less_quality_loses_more() -> None:
    errors = [np.square(changed(Jpeg(quality), photos()).astype(float) - photos()).mean() for quality in (10, 30, 95)]
    assert errors[0] > errors[1] > errors[2]


def test_grey_has_equal_channels_and_the_luma_of_pure_colours() -> None:
    grey = changed(Grey(), photos())
    assert (grey == grey[..., :1]).all()
    primaries = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8).reshape(1, 2, 2, 3)
    # 0.299, 0.587 and 0.114 of 255
    assert changed(Grey(), primaries)[..., 0].ravel().tolist() == [76, 150, 29, 255]
    one = photos(channels=1)
    assert np.array_equal(changed(Grey(), one), one)


def test_two_bits_leave_four_levels_each_the_nearest() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    rounded = changed(BitDepth(2), ramp).ravel()
    assert np.unique(rounded).tolist() == [0, 85, 170, 255]
    assert np.abs(rounded.astype(int) - np.arange(256)).max() == 42  # half of 85, less a half
    assert np.array_equal(changed(BitDepth(8), ramp), ramp)


def test_blur_spreads_a_point_by_the_gaussian_of_three_pixels() -> None:
    point = np.zeros((1, 16, 16, 1), np.uint8)
    point[0, 8, 8] = 255
    blurred = changed(Blur(1.0), point)[0, :, :, 0].astype(int)
    side = np.exp(-0.5) / (1 + 2 * np.exp(-0.5))
    assert blurred[8, 8] == round(255 * (1 - 2 * side) ** 2)
    assert blurred[8, 9] == blurred[7, 8] == round(255 * (1 - 2 * side) * side)
    assert blurred[9, 9] == round(255 * side**2)
    assert np.count_nonzero(blurred) == 9


def test_a_shift_moves_every_pixel_by_whole_pixels() -> None:
    size = 16
    across = torch.arange(size).float().expand(40, 3, size, size) / 255
    moved = ShiftFlip().batch(across, torch.zeros(40, 2), generator(0))[0] * 255
    steps = moved[:, 0, 8, 4:12].diff(dim=1)  # the middle is never mirrored by a shift of at most two
    assert torch.allclose(steps.abs(), torch.ones_like(steps), atol=1e-4)
    assert set(steps[:, 0].sign().tolist()) == {-1.0, 1.0}
    columns = torch.where(steps[:, 0] > 0, moved[:, 0, 8, 8], 15 - moved[:, 0, 8, 8])
    assert sorted(set((columns - 8).round().tolist())) == [-2, -1, 0, 1, 2]


def test_cutout_makes_at_most_a_quarter_grey() -> None:
    black = torch.zeros(200, 3, 16, 16)
    seen, _ = Cutout(0.5).batch(black, torch.zeros(200, 2), generator(0))
    areas = (seen[:, 0] == 0.5).sum(dim=(1, 2))
    assert areas.max() == 64
    assert areas.min() >= 16  # a corner: half of each side is inside
    assert ((seen == 0) | (seen == 0.5)).all()
    assert torch.equal(Cutout(0.0).batch(black, torch.zeros(200, 2), generator(0))[0], black)


@pytest.mark.parametrize("kind", [Mixup(), CutMix()])
def test_mixed_targets_sum_to_one(kind: Defence) -> None:
    for seed in range(10):
        targets = kind.batch(*batch(), generator(seed))[1]
        assert torch.allclose(targets.sum(dim=1), torch.ones(12))
        assert (targets >= 0).all()


def test_mixup_gives_images_the_weights_of_their_targets() -> None:
    # image i is i everywhere, and its target holds i as well: both must be mixed alike
    values = torch.arange(12).float()
    images, targets = Mixup().batch(values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4), values[:, None], generator(0))
    assert torch.allclose(images.mean(dim=(1, 2, 3)), targets[:, 0])
    assert not torch.equal(targets[:, 0], values)


def test_cutmix_weighs_targets_by_the_pixels_that_are_seen() -> None:
    values = torch.arange(12).float()
    for seed in range(10):
        images, targets = CutMix().batch(
            values.view(-1, 1, 1, 1).expand(-1, 1, 16, 16), values[:, None], generator(seed)
        )
        assert set(images.unique().tolist()) <= set(values.tolist())
        assert torch.allclose(images.mean(dim=(1, 2, 3)), targets[:, 0], atol=1e-5)


def test_the_worst_of_many_views_costs_more_than_that_of_one() -> None:
    images, targets = batch()
    model = linear()
    losses = [
        F.cross_entropy(model(UEraser(draws).attack(model, images, targets, generator(0))), targets).item()
        for draws in (1, 5)
    ]
    assert losses[0] < losses[1]


def test_strong_views_of_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match="width must be 8 as the height for strong views, got 6"):
        Strong().batch(torch.zeros(2, 3, 8, 6), torch.zeros(2, 2), generator(0))


def test_the_attack_on_a_linear_model_of_two_classes_is_the_sign_of_its_weights() -> None:
    # enough steps reach the corner that no other image within epsilon exceeds
    model, images = linear(), torch.full((4, 3, 16, 16), 0.5)
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight[2], layer.bias[2] = 0, -1e9  # leaves two classes
    targets = F.one_hot(torch.zeros(4, dtype=torch.int64), 3).float()
    found = Adversarial(epsilon=8, step=2, steps=9).attack(model, images, targets, generator(0))
    away = (layer.weight[1] - layer.weight[0]).detach().sign().view(3, 16, 16)
    torch.testing.assert_close(found, images + 8 / 255 * away, rtol=0, atol=1e-6)


def test_the_attack_stays_within_epsilon_and_raises_the_loss() -> None:
    images, targets = batch()
    model = linear()
    found = Adversarial().attack(model, images, targets, generator(0))
    assert (found - images).abs().max() <= 8 / 255 + 1e-6
    assert F.cross_entropy(model(found), targets) > F.cross_entropy(model(images), targets)


@pytest.mark.parametrize("kind", [Adversarial(), UEraser(2)])
def test_an_attack_leaves_the_model_as_it_was(kind: Defence) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), linear()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kind.attack(model, *batch(), generator(0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_projection_takes_a_planted_linear_pattern_out() -> None:
    rng = generator(0, "planted")
    labels = np.arange(300) % 2
    pattern = rng.choice([-16, 16], (8, 8, 3))
    plain = rng.integers(90, 160, (300, 8, 8, 3))
    planted = (plain + np.where(labels == 1, 1, -1)[:, None, None, None] * pattern).astype(np.uint8)

    def apart(images: NDArray[np.uint8]) -> float:
        """Return how far the classes lie apart along the pattern, in levels."""
        along = (images.astype(float) * np.sign(pattern)).mean(axis=(1, 2, 3))
        return float(along[labels == 1].mean() - along[labels == 0].mean())

    assert apart(planted) == pytest.approx(32, abs=1)
    assert abs(apart(Projection().change(planted, labels, 0)(planted))) < 3


def test_projection_changes_one_direction_for_two_classes() -> None:
    images, labels = photos(40, size=8) // 4 + 96, np.arange(40) % 2
    away = Projection().change(images, labels, 0)(images).astype(float) - images
    values = np.linalg.svd(away.reshape(40, -1), compute_uv=False)
    assert values[0] > 3 * values[1]  # the rest is rounding
    assert abs(away.mean()) < 0.1  # the mean image stays


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Jpeg(0), "quality must be between 1 and 95, got 0"),
        (lambda: BitDepth(9), "bits must be between 1 and 8, got 9"),
        (lambda: Blur(0), "sigma must be above 0, got 0"),
        (lambda: Cutout(2), "share must be between 0 and 1, got 2"),
        (lambda: Mixup(0), "alpha must be above 0, got 0"),
        (lambda: CutMix(-1), "alpha must be above 0, got -1"),
        (lambda: UEraser(0), "draws must be at least 1, got 0"),
        (lambda: Adversarial(steps=0), "steps must be at least 1, got 0"),
        (lambda: Projection(epochs=0), "epochs must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: type[Defence], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
