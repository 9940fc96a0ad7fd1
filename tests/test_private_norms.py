from collections.abc import Callable

import pytest
import torch
from opacus.validators import ModuleValidator
from torch import nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.models.norms import group_norm
from fedssl.objectives.byol import Byol
from fedssl.objectives.simsiam import SimSiam
from fedssl.privacy.norms import coupling_layers, single_element_norms


def frozen(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        parameter.requires_grad = False
    return layer


MIXING = {
    "affine": lambda: nn.BatchNorm2d(4),
    "one dimension": lambda: nn.BatchNorm1d(4),
    "three dimensions": lambda: nn.BatchNorm3d(4),
    "without weights": lambda: nn.BatchNorm1d(4, affine=False),
    "with frozen weights": lambda: frozen(nn.BatchNorm2d(4)),
    "of several machines": lambda: nn.SyncBatchNorm(4),
    "lazily built": nn.LazyBatchNorm2d,
    "without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
}


@pytest.mark.parametrize("make", MIXING.values(), ids=list(MIXING))
def test_every_layer_that_mixes_examples_is_named_also_while_it_rests(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(make())).eval()
    assert coupling_layers(model) == ["1.0"]
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("layer", [group_norm(8), nn.LayerNorm(8), nn.InstanceNorm2d(8), nn.Conv2d(8, 8, 1)])
def test_layers_that_do_not_mix_examples_are_not_named(layer: nn.Module) -> None:
    assert coupling_layers(nn.Sequential(layer)) == []


@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_named_mixes_examples_and_frozen_batch_norm_does_not_if_it_has_statistics(track: bool) -> None:
    layer = nn.BatchNorm1d(2, track_running_stats=track).eval()
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    changed = torch.cat((rows[:1], rows[1:] + 1))
    assert torch.equal(layer(rows)[0], layer(changed)[0]) == track


def test_modes_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(4)))
    model[0].eval()
    before = [module.training for module in model.modules()]
    assert coupling_layers(model) == ["0", "2.0"]
    assert [module.training for module in model.modules()] == before


def test_a_bundle_whose_statistics_never_change_mixes_nothing_unless_asked() -> None:
    model = build_bundle(lambda: small_resnet(1, width=4), SimSiam(8, 8, 8), 0, frozen_norms=True)
    thawed = build_bundle(lambda: small_resnet(1, width=4), SimSiam(8, 8, 8), 0)
    assert coupling_layers(model) == []
    names = coupling_layers(thawed)
    assert names == coupling_layers(model, frozen_ok=False)
    assert len(names) == 9 + 4  # of the network; of the projector and the predictor
    assert "projector.7" in names  # without weights


def test_a_bundle_of_group_norms_mixes_nothing_and_a_teacher_is_looked_at_too() -> None:
    grouped = build_bundle(lambda: small_resnet(1, width=4, norm="group"), Byol(8, 8, "group"), 0)
    assert coupling_layers(grouped) == []
    batch = build_bundle(lambda: small_resnet(1, width=4), Byol(8, 8, "group"), 0)
    assert any(name.startswith("teacher.") for name in coupling_layers(batch))


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(4, affine=False), lambda: frozen(nn.BatchNorm1d(4))])
def test_opacus_passes_batch_norm_without_trainable_weights_and_we_do_not(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), make())
    assert ModuleValidator.validate(model) == []
    assert ModuleValidator.validate(nn.Sequential(nn.BatchNorm1d(4))) != []
    assert coupling_layers(model) == ["1"]


def test_the_group_norm_that_opacus_makes_of_32_channels_erases_a_feature_and_ours_does_not() -> None:
    rows = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    theirs = ModuleValidator.fix(nn.Sequential(nn.BatchNorm1d(32)))
    assert theirs[0].num_groups == 32
    assert theirs(rows).abs().max() < 1e-4  # rounding
    assert single_element_norms(theirs) == ["0"]
    ours = nn.Sequential(group_norm(32))
    assert ours(rows).std() > 0.9
    assert single_element_norms(ours) == []


@pytest.mark.parametrize("channels", range(1, 65))
def test_a_group_of_ours_holds_several_channels_wherever_there_are_several(channels: int) -> None:
    assert (single_element_norms(nn.Sequential(group_norm(channels))) == ["0"]) == (channels == 1)
