from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedssl.models.differences import differences
from fedssl.models.encoder import Encoder
from fedssl.models.image import resnet18, small_resnet
from fedssl.models.small3d import small3d
from fedssl.models.vit import vit_tiny
from fedssl.privacy.audit.layer_mem import Layer, Staged, report, stages
from fedssl.privacy.audit.sslmem import pairs


def encoder(last: float) -> Encoder:
    """Two stages of one weight a channel: the first doubles, the second multiplies by `last` and adds 1."""
    body = nn.Sequential(nn.Conv3d(2, 2, 1, groups=2), nn.ReLU(), nn.Conv3d(2, 2, 1, groups=2))
    with torch.no_grad():
        for layer, weight, bias in ((body[0], 2.0, 0.0), (body[2], last, 1.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    return Encoder(body, 2)


def clips(*features: list[float]) -> Tensor:
    """Clips of one frame and of pixels that are all the same."""
    return torch.tensor(features)[:, :, None, None, None].expand(-1, -1, 1, 2, 3)


VIEWS = clips([1.0, 0.0]), clips([0.0, 1.0])  # of one example


def alignments(network: Encoder) -> list[np.ndarray]:
    outputs = [Staged(network)(view) for view in VIEWS]
    return [pairs(torch.stack(stage, dim=1).detach().numpy()) for stage in zip(*outputs, strict=True)]


def test_each_stage_tells_its_pooled_output_and_the_encoder_is_left_as_it_was() -> None:
    network = encoder(last=3.0)
    first, second = Staged(network)(clips([1.0, 0.0], [0.5, 2.0]))
    assert first.tolist() == [[2.0, 0.0], [1.0, 4.0]]
    assert second.tolist() == [[7.0, 1.0], [4.0, 13.0]]
    assert second.equal(network(clips([1.0, 0.0], [0.5, 2.0])))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_stage_that_maps_every_view_to_one_point_is_the_one_that_memorises() -> None:
    curves = alignments(encoder(last=0.0)) + alignments(encoder(last=3.0))
    # unit lengths: (1, 0) and (0, 1) after the first stage; (7, 1) and (1, 7) over the root of 50 after the second
    found = report(("0", "2"), [curve.repeat(2) for curve in curves], np.array([True, False]))
    distance = 6 * 2**0.5 / 50**0.5
    assert found["0"] == Layer(0.0, 0.0, 0.0)
    assert found["2"].candidate == found["2"].increase == pytest.approx(distance)


def test_the_increase_is_over_the_stage_before_and_over_nothing_for_the_first() -> None:
    own, other = [np.array([0.1, 0.5]), np.array([0.1, 0.5])], [np.array([0.4, 0.3]), np.array([0.9, 0.1])]
    found = report(("a", "b"), own + other, np.array([True, False]))
    assert [each.candidate for each in found.values()] == pytest.approx([0.3, 0.8])
    assert [each.independent for each in found.values()] == pytest.approx([-0.2, -0.4])
    assert [each.increase for each in found.values()] == pytest.approx([0.3, 0.5])


def test_exchanging_the_twins_turns_the_sign() -> None:
    one, two = alignments(encoder(last=0.5)), alignments(encoder(last=3.0))
    both = np.array([True, False])
    there, back = (report(("0", "2"), [c.repeat(2) for c in curves], both) for curves in (one + two, two + one))
    assert there["2"].candidate == -back["2"].candidate != 0


@pytest.mark.parametrize(
    ("network", "shape", "names"),
    [
        (lambda: small_resnet(1, width=4, norm="group"), (1, 1, 8, 8), ["0", "1", "2", "3"]),
        (lambda: resnet18(3), (3, 1, 16, 16), ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]),
        (lambda: small3d(1, 4), (1, 4, 8, 8), ["0", "1", "2", "3"]),
        (lambda: vit_tiny(1, 8, 4, depth=2), (1, 1, 8, 8), ["encoder_layer_0", "encoder_layer_1"]),
        (lambda: differences(small3d(1, 4)), (1, 4, 8, 8), ["0", "1", "2", "3"]),
    ],
)
def test_every_kind_of_encoder_has_its_stages(
    network: Callable[[], Encoder], shape: tuple[int, ...], names: list[str]
) -> None:
    own = network()
    assert list(stages(own)) == names
    own.eval()
    pixels = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    outputs = Staged(own)(pixels)
    assert len(outputs) == len(names)
    assert all(output.shape[0] == 2 and output.ndim == 2 for output in outputs)
    if not names[0].startswith("encoder"):  # the features of a transformer are normalised and leave out a token
        torch.testing.assert_close(outputs[-1], own(pixels))


def test_frames_are_averaged_as_places_are() -> None:
    network = small_resnet(1, width=4, norm="group").eval()
    pixels = torch.rand(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Staged(network)(pixels)[-1], network(pixels))


def test_an_encoder_without_a_sequence_has_no_stages() -> None:
    network = Encoder(nn.Conv3d(1, 2, 1), 2)
    assert stages(network) == {}
    assert Staged(network)(torch.rand(2, 1, 1, 4, 4)) == ()
    assert report((), [], np.array([True, False])) == {}
