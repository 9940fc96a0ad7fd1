import numpy as np
import pytest
import torch
from torch import nn

from fedssl.models import bundle
from fedssl.models.differences import FrameDifferences, differences
from fedssl.models.encoder import Encoder
from fedssl.models.small3d import small3d
from fedssl.models.video import r2plus1d_18, r3d_18
from fedssl.objectives.vcop import Vcop


def make() -> nn.ModuleDict:
    return bundle.build_bundle(lambda: small3d(width=4), Vcop(hidden=8), seed=3)


@pytest.mark.parametrize(("frames", "size"), [(4, 32), (8, 32), (16, 112), (1, 1)])
def test_small3d_takes_clips_of_many_sizes(frames: int, size: int) -> None:
    encoder = small3d().eval()
    assert encoder(torch.rand(2, 1, frames, size, size)).shape == (2, 64)


def test_a_last_stride_of_one_makes_the_map_of_small3d_twice_as_fine_with_the_same_weights() -> None:
    coarse, fine = small3d(width=4).eval(), small3d(width=4, last_stride=1).eval()
    fine.load_state_dict(coarse.state_dict())
    clips = torch.rand(1, 1, 8, 32, 32)
    assert coarse.map_shape((1, 8, 32, 32)) == (16, 2, 2, 2)
    assert fine.map_shape((1, 8, 32, 32)) == (16, 2, 4, 4)
    torch.testing.assert_close(fine.feature_map(clips)[..., ::2, ::2], coarse.feature_map(clips))
    assert differences(fine).map_shape((1, 9, 32, 32)) == (16, 2, 4, 4)
    with pytest.raises(ValueError, match="last_stride must be at least 1, got 0"):
        small3d(last_stride=0)


def test_the_shape_of_a_map_is_found_without_a_trace() -> None:
    encoder = small3d(in_channels=2, width=2)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert encoder.map_shape((2, 5, 20, 40)) == tuple(encoder.eval().feature_map(torch.rand(1, 2, 5, 20, 40)).shape[1:])
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert encoder.train().map_shape((2, 1, 1, 1)) == (8, 1, 1, 1)
    assert encoder.training


def test_small3d_trains_on_a_batch_of_one() -> None:
    encoder = small3d(in_channels=3, width=2)
    encoder(torch.rand(1, 3, 8, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("make_encoder", [r3d_18, r2plus1d_18])
@pytest.mark.parametrize("channels", [1, 3])
def test_residual_networks_have_512_features(make_encoder: type[Encoder], channels: int) -> None:
    encoder = make_encoder(in_channels=channels).eval()
    with torch.no_grad():
        assert encoder(torch.rand(1, channels, 4, 16, 16)).shape == (1, encoder.feature_dim) == (1, 512)
    assert not any("fc" in name for name in encoder.state_dict())


@pytest.mark.parametrize("make_encoder", [small3d, r3d_18, r2plus1d_18])
def test_channels_must_be_positive(make_encoder: type[Encoder]) -> None:
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        make_encoder(in_channels=0)


def test_the_state_is_the_disjoint_union_of_the_groups() -> None:
    model = make()
    parts = [bundle.arrays(model, [group]) for group in model]
    names = [name for part in parts for name in part]
    assert list(model) == ["backbone", "head"]
    assert len(names) == len(set(names))
    assert set(names) == set(model.state_dict()) == set(bundle.arrays(model, None))
    assert all(parts)


def test_loading_its_own_arrays_is_identity() -> None:
    model, other = make(), bundle.build_bundle(lambda: small3d(width=4), Vcop(hidden=8), seed=4)
    before = bundle.arrays(model, None)
    bundle.load(model, before)
    bundle.load(other, before)
    for after in (bundle.arrays(model, None), bundle.arrays(other, None)):
        assert all(np.array_equal(after[name], before[name]) for name in before)


def test_loading_a_group_leaves_the_others() -> None:
    model = make()
    before = bundle.arrays(model, None)
    bundle.load(model, {name: np.zeros_like(value) for name, value in bundle.arrays(model, {"head"}).items()})
    for name, value in bundle.arrays(model, None).items():
        assert not value.any() if name.startswith("head.") else np.array_equal(value, before[name])


def test_arrays_are_copies() -> None:
    model = make()
    copied = bundle.arrays(model, None)
    copied["head.classify.bias"][:] = 7
    assert not (model.state_dict()["head.classify.bias"] == 7).any()


@pytest.mark.parametrize("groups", [["tail"], ["head", "tail"]])
def test_an_unknown_group_is_named_with_the_known(groups: list[str]) -> None:
    with pytest.raises(ValueError, match="among backbone, head, got tail"):
        bundle.arrays(make(), groups)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"head.no": np.zeros(1, np.float32)}, "head.no is not"),
        ({"head.classify.bias": np.zeros(5, np.float32)}, r"head.classify.bias must have shape \(6,\), got \(5,\)"),
        ({"head.classify.bias": np.zeros(6)}, "head.classify.bias must have dtype float32, got float64"),
    ],
)
def test_a_wrong_array_is_named_and_nothing_is_copied(wrong: dict[str, np.ndarray], text: str) -> None:
    model = make()
    before = bundle.arrays(model, None)
    with pytest.raises(ValueError, match=text):
        bundle.load(model, {"head.compare.0.bias": np.ones(8, np.float32), **wrong})
    assert np.array_equal(bundle.arrays(model, None)["head.compare.0.bias"], before["head.compare.0.bias"])


def test_buffers_are_told_from_parameters() -> None:
    model = make()
    buffers = bundle.buffer_names(model)
    assert len(buffers) == 4 * 3
    assert buffers == {name for name, _ in model.named_buffers()}
    assert all(name.split(".")[-1] in {"running_mean", "running_var", "num_batches_tracked"} for name in buffers)


def test_building_is_repeatable_and_leaves_the_global_generator() -> None:
    state = torch.get_rng_state()
    first, second = bundle.arrays(make(), None), bundle.arrays(make(), None)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_differences_do_not_see_what_stands_still() -> None:
    encoder = differences(small3d(width=4)).eval()
    clips = torch.rand(2, 1, 8, 16, 16)
    background = torch.rand(2, 1, 1, 16, 16)
    torch.testing.assert_close(encoder(clips + background), encoder(clips), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(FrameDifferences()(clips), torch.diff(clips, dim=2))
    assert encoder(clips).shape == (2, encoder.feature_dim)


def test_differences_need_two_frames() -> None:
    with pytest.raises(ValueError, match="clip_frames must be at least 2 for frame differences, got 1"):
        differences(small3d(width=4))(torch.rand(1, 1, 1, 8, 8))
