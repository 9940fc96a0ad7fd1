import numpy as np
import pytest
import torch

from fedssl.seeding import uniforms
from fedssl.training.augment import ClipAugmentation, resize

IDENTITY = np.array([1, 0, 0, 1, 1, 1], dtype=np.float32)


def clips(count: int, height: int = 20, width: int = 30) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 4, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def drawn(augmentation: ClipAugmentation, count: int) -> np.ndarray:
    return augmentation.parameters(uniforms(5, "augment", rows=np.arange(count), columns=6))


def test_a_static_clip_stays_static() -> None:
    augmentation = ClipAugmentation(16, 12, flip=0.5)
    static = clips(5)[:, :, :1].expand(-1, -1, 4, -1, -1)
    result = augmentation.apply(static, drawn(augmentation, 5))
    assert torch.equal(result, result[:, :, :1].expand_as(result))


def test_the_same_key_gives_the_same_pixels_in_any_batch() -> None:
    augmentation = ClipAugmentation(17, 13, crop_scale=(0.2, 1.0), flip=0.5, brightness=0.4, contrast=0.4)
    inputs, params = clips(9), drawn(augmentation, 9)
    whole = augmentation.apply(inputs, params)
    for index in range(9):
        assert torch.equal(augmentation.apply(inputs[index : index + 1], params[index : index + 1])[0], whole[index])
    assert torch.equal(augmentation.apply(inputs.flip(0), params[::-1]).flip(0), whole)


@pytest.mark.parametrize("size", [(20, 30), (10, 15), (32, 32), (7, 11)])
def test_identity_parameters_give_the_resize(size: tuple[int, int]) -> None:
    inputs = clips(3)
    result = ClipAugmentation(*size).apply(inputs, np.tile(IDENTITY, (3, 1)))
    assert result.shape == (3, 3, 4, *size)
    assert torch.allclose(result, resize(inputs, *size), atol=1e-5)


def test_resize_to_its_own_size_only_scales() -> None:
    inputs = clips(2)
    assert torch.equal(resize(inputs, 20, 30), inputs.float() / 255)


def test_flip_mirrors_left_and_right() -> None:
    inputs = clips(2)
    params = np.tile(IDENTITY, (2, 1))
    params[:, 3] = -1
    result = ClipAugmentation(20, 30).apply(inputs, params)
    assert torch.allclose(result, inputs.flip(-1).float() / 255, atol=1e-5)


def test_a_crop_is_a_part_of_the_image() -> None:
    inputs = clips(1, 20, 20)
    params = np.array([[0.5, -0.5, 0.5, 1, 1, 1]], dtype=np.float32)
    result = ClipAugmentation(10, 10).apply(inputs, params)
    assert torch.allclose(result, inputs[..., 10:, :10].float() / 255, atol=1e-5)


def test_brightness_and_contrast_follow_their_formula() -> None:
    inputs = clips(1)
    params = IDENTITY[None].copy()
    params[0, 4:] = (1.2, 0.7)
    result = ClipAugmentation(20, 30).apply(inputs, params)
    expected = ((inputs.float() / 255 * 1.2 - 0.5) * 0.7 + 0.5).clamp(0, 1)
    assert torch.allclose(result, expected, atol=1e-5)


def test_draws_stay_in_range_and_inside_the_image() -> None:
    augmentation = ClipAugmentation(8, 8, crop_scale=(0.25, 0.81), flip=0.5, brightness=0.3, contrast=0.1)
    side, x, y, flip, brightness, contrast = drawn(augmentation, 500).T
    assert side.min() >= 0.5
    assert side.max() <= 0.9 + 1e-6
    assert (np.abs(x) + side <= 1 + 1e-6).all()
    assert (np.abs(y) + side <= 1 + 1e-6).all()
    assert set(flip) == {-1.0, 1.0}
    assert 0.4 < (flip < 0).mean() < 0.6
    assert np.abs(brightness - 1).max() <= 0.3 + 1e-6
    assert np.abs(contrast - 1).max() <= 0.1 + 1e-6
    result = augmentation.apply(clips(6), drawn(augmentation, 6))
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1


def test_settings_off_draw_the_identity() -> None:
    augmentation = ClipAugmentation(8, 8, crop_scale=[1, 1], flip=0, brightness=0, contrast=0)
    assert augmentation.crop_scale == (1.0, 1.0)
    assert np.array_equal(augmentation.parameters(np.random.default_rng(0).random((1, 6)))[0], IDENTITY)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("height", 0),
        ("width", -1),
        ("crop_scale", [0.0, 1.0]),
        ("crop_scale", [0.9, 0.5]),
        ("crop_scale", [0.5]),
        ("flip", 1.1),
        ("brightness", -0.1),
        ("contrast", 2.0),
    ],
)
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        ClipAugmentation(**{"height": 8, "width": 8, name: value})


def test_parameters_must_fit_the_clips() -> None:
    with pytest.raises(ValueError, match=r"params must have shape \(2, 6\), got \(1, 6\)"):
        ClipAugmentation(8, 8).apply(clips(2), IDENTITY[None])
