import pytest
import torch
from torch import nn

from fedssl.models.image import small_resnet
from fedssl.models.vit import vit_tiny
from fedssl.objectives.second_network import listening, redrawn
from fedssl.seeding import torch_stream


def test_another_draw_has_the_same_numbers_in_other_places() -> None:
    encoder = small_resnet(1, 4)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    other = redrawn(encoder).state_dict()
    for name, tensor in before.items():
        assert torch.equal(encoder.state_dict()[name], tensor)
        assert torch.equal(other[name].flatten().sort().values, tensor.flatten().sort().values)
        constant = tensor.numel() == 1 or bool((tensor == tensor.flatten()[0]).all())
        assert torch.equal(other[name], tensor) == constant


def test_the_draw_is_that_of_the_stream_it_is_made_in() -> None:
    encoder = small_resnet(1, 4)
    draws = []
    for seed in (0, 0, 1):
        with torch_stream(seed, "init"):
            draws.append(redrawn(encoder).state_dict()["body.0.0.weight"])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_positions_of_patches_stay_where_they_are() -> None:
    encoder = vit_tiny(in_channels=1, image_size=8, patch_size=4, depth=1)
    other = redrawn(encoder).state_dict()
    moved = {name for name, tensor in encoder.state_dict().items() if not torch.equal(other[name], tensor)}
    assert "body.encoder.pos_embedding" not in moved
    assert any(name.endswith("self_attention.in_proj_weight") for name in moved)
    assert any(name.endswith("conv_proj.weight") for name in moved)


def test_rows_are_heard_in_one_call_or_in_several() -> None:
    layer, rows = nn.Linear(3, 2), torch.arange(12.0).view(4, 3)
    for sizes in ((4,), (1, 3), (2, 2)):
        with listening(layer) as passed:
            for part in rows.split(sizes):
                layer(part)
        layer(rows + 1)  # nobody listens any more
        found = passed.first(rows[:3])
        assert torch.allclose(found, layer(rows)[:3])
        assert found.requires_grad


def test_other_rows_are_not_taken_for_the_first() -> None:
    layer, rows = nn.Linear(3, 2), torch.arange(12.0).view(4, 3)
    with listening(layer) as passed:
        layer(rows.flip(0))
    with pytest.raises(ValueError, match="host must show its networks the first view before any other"):
        passed.first(rows)
    with pytest.raises(ValueError, match="host must show"), listening(layer) as passed:
        passed.first(rows)
