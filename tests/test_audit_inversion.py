from math import inf

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.privacy.audit.inversion import identification_rate, invert, linear_input, psnr, total_variation
from fedssl.seeding import torch_stream


def test_the_input_of_a_linear_layer_is_read_off_its_gradient() -> None:
    with torch_stream(0, "test"):
        layer, image = nn.Linear(64, 10), torch.rand(1, 64)
    loss = F.cross_entropy(layer(image), torch.tensor([3]))
    weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias])
    torch.testing.assert_close(linear_input(weight, bias), image[0], rtol=0, atol=1e-5)


def test_a_bias_without_a_gradient_tells_nothing() -> None:
    with pytest.raises(ValueError, match="bias_gradient must not be zero, got all zeros"):
        linear_input(torch.ones(3, 2), torch.zeros(3))


class Victim:
    """A small network with an image whose gradient is observed."""

    def __init__(self) -> None:
        with torch_stream(1, "test"):
            body = (nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid())
            self.model = nn.Sequential(*body, nn.Flatten(), nn.Linear(8 * 64, 10)).double()
        smooth = torch.linspace(0, 3, 8, dtype=torch.float64)
        every = [(0.5 + 0.5 * torch.sin(smooth * turn + turn)).outer(smooth / 3) for turn in range(1, 11)]
        self.images = torch.stack(every)[:, None]
        self.parameters = list(self.model.parameters())
        self.gradients = torch.autograd.grad(self.loss(self.images[:1]), self.parameters)

    def loss(self, images: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), torch.tensor([4]))

    def recover(self, gradients: tuple[Tensor, ...]) -> Tensor:
        return invert(self.loss, self.parameters, gradients, (1, 1, 8, 8), steps=300, smoothness=1e-4)


def test_an_image_comes_back_from_its_gradient_and_not_from_a_noised_one() -> None:
    victim = Victim()
    own, others = victim.images[:1], victim.images[1:]
    found = victim.recover(victim.gradients)
    assert psnr(found, own) > 25
    assert identification_rate(found, own, others) == 1.0
    assert torch.equal(found, victim.recover(victim.gradients))
    norm = torch.cat([gradient.flatten() for gradient in victim.gradients]).norm()
    rng = torch.Generator().manual_seed(0)
    noised = [each + norm * torch.randn(each.shape, generator=rng, dtype=each.dtype) for each in victim.gradients]
    assert psnr(victim.recover(noised), own) < 15


def test_gradients_of_other_shapes_are_refused() -> None:
    victim = Victim()
    with pytest.raises(ValueError, match="gradients must have the shapes of the parameters"):
        invert(victim.loss, victim.parameters, victim.gradients[1:], (1, 1, 8, 8))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        invert(victim.loss, victim.parameters, victim.gradients, (1, 1, 8, 8), steps=0)


def test_a_tenth_off_everywhere_is_twenty_decibels() -> None:
    zeros = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    assert psnr(zeros + 0.1, zeros) == pytest.approx(20)
    assert psnr(zeros, zeros) == inf


def test_a_ramp_varies_by_its_step() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    assert float(total_variation(ramp)) == 1.0
    assert float(total_variation(torch.ones(1, 1, 3, 3))) == 0.0


def test_images_are_found_in_any_order() -> None:
    pool = torch.eye(6)
    assert identification_rate(pool[[1, 0]], pool[:2], pool[2:]) == 1.0
    assert identification_rate(pool[[1, 5]], pool[:2], pool[2:]) == 0.5
