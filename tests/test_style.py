from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedssl.training.image_augment import ImageAugmentation
from fedssl.training.image_view import ImageView
from fedssl.training.style import BatchStyle, standardise

SIZES = [(16, 16), (15, 12), (9, 13)]


def views(count: int = 5, frames: int = 1, size: tuple[int, int] = (16, 16)) -> Tensor:
    return torch.rand(count, 3, frames, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def slow(view: Tensor, reference: Tensor, half_side: int) -> Tensor:
    """Return one image `[channels, height, width]` by the definition, complex."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(view), dim=(-2, -1))
    style = torch.fft.fftshift(torch.fft.fft2(reference), dim=(-2, -1)).abs()
    height, width = view.shape[-2:]
    for channel in range(len(view)):
        for row in range(height):
            for column in range(width):
                if abs(row - height // 2) <= half_side and abs(column - width // 2) <= half_side:
                    phase = torch.exp(1j * spectrum[channel, row, column].angle())
                    spectrum[channel, row, column] = style[channel, row, column] * phase
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("half_side", [0, 2, 4, 8])
def test_it_is_the_definition_and_real(size: tuple[int, int], half_side: int) -> None:
    images = views(2, size=size)
    expected = slow(images[0, :, 0], images[1, :, 0], half_side)
    assert expected.imag.abs().max() < 1e-12
    torch.testing.assert_close(standardise(images, images[1, :, 0], half_side)[0, :, 0], expected.real)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("half_side", [0, 3, 8])
def test_the_reference_stays_and_a_second_time_changes_nothing(size: tuple[int, int], half_side: int) -> None:
    images = views(size=size)
    once = standardise(images, images[2, :, 0], half_side)
    torch.testing.assert_close(once[2], images[2], atol=1e-9, rtol=0)
    torch.testing.assert_close(standardise(once, once[2, :, 0], half_side), once, atol=1e-9, rtol=0)


@pytest.mark.parametrize("half_side", [0, 3])
def test_all_images_share_the_channel_means_of_the_reference(half_side: int) -> None:
    images = views(frames=2)
    means = standardise(images, images[1, :, 0], half_side).mean(dim=(-2, -1))
    torch.testing.assert_close(means, images[1, :, 0].mean(dim=(-2, -1)).view(1, 3, 1).expand_as(means))


def test_the_least_ratio_changes_the_mean_alone() -> None:
    images = views()
    styled = standardise(images, images[0, :, 0], 0)
    shift = styled - images
    torch.testing.assert_close(shift, shift.mean(dim=(-2, -1), keepdim=True).expand_as(shift), atol=1e-12, rtol=0)


def test_phases_stay_and_high_amplitudes_too() -> None:
    images = views(size=(15, 15))
    before, after = torch.fft.fft2(images), torch.fft.fft2(standardise(images, images[0, :, 0], 3))
    turned = before / before.abs() * (after / after.abs()).conj()
    torch.testing.assert_close(turned, torch.ones_like(turned), atol=1e-9, rtol=0)
    periods = torch.fft.fftfreq(15, 1 / 15).abs()
    high = torch.maximum(periods[:, None], periods) > 3
    torch.testing.assert_close(after.abs()[..., high], before.abs()[..., high])
    low = before[0].abs()[..., ~high].expand_as(after.abs()[..., ~high])
    torch.testing.assert_close(after.abs()[..., ~high], low)


def test_a_clip_takes_one_style_in_all_frames_and_a_static_clip_stays_static() -> None:
    static = views().expand(-1, -1, 4, -1, -1)
    styled = standardise(static, views(frames=2)[0, :, 1], 4)
    assert torch.equal(styled, styled[:, :, :1].expand_as(styled))


def test_a_black_channel_takes_the_mean() -> None:
    images = views()
    images[0, 1] = 0
    styled = standardise(images, images[1, :, 0], 2)
    torch.testing.assert_close(styled[0, 1].mean(), images[1, 1].mean())
    assert styled.isfinite().all()


def test_reference_and_ratio_are_those_of_the_first_example() -> None:
    images, numbers = views(frames=2), np.random.default_rng(0).random((5, 2))
    numbers[0] = (0.5, 0.25)  # the third of five, half of the way from 0 to 1
    styled = BatchStyle((0.25, 0.75))(images, numbers)
    torch.testing.assert_close(styled, standardise(images, images[2, :, 0], 3).clamp(0, 1))
    numbers[1:] = 0
    assert torch.equal(BatchStyle((0.25, 0.75))(images, numbers), styled)
    assert styled.min() >= 0
    assert styled.max() <= 1


def test_views_draw_references_of_their_own_and_light_ones_none() -> None:
    pixels = (views(6) * 255).to(torch.uint8)
    plain = ImageView(crop_scale=(1, 1), aspect=(1, 1), flip=0, jitter=0, grey=0)
    without = ImageAugmentation(16, 16, 8, plain, local=plain, light=plain)
    styled = replace(without, style=BatchStyle((0.5, 0.5)))
    numbers = np.zeros((6, 16))
    for place in (0, 4):
        numbers[0, 14] = (place + 0.5) / 6
        same = without(pixels, numbers, "full", 0)
        result = styled(pixels, numbers, "full", 0)
        torch.testing.assert_close(result[place], same[place], atol=1e-5, rtol=0)
        assert ((result - same).abs().amax(dim=(1, 2, 3, 4)) > 0.01).sum() == 5
    assert torch.equal(styled(pixels, numbers, "light", 0), without(pixels, numbers, "light", 0))
    assert styled.num_uniforms == 21


@pytest.mark.parametrize("ratio", [[0.5], [-0.1, 0.5], [0.6, 0.5], [0.5, 1.1]])
def test_a_bad_ratio_is_named(ratio: list[float]) -> None:
    with pytest.raises(ValueError, match="ratio must be"):
        BatchStyle(ratio)
