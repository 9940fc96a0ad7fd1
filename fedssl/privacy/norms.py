"""Normalisation that lets examples of a batch see each other, or that erases a feature."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


def mixes(layer: nn.Module) -> bool:
    """Return whether a layer, in the mode it is in, lets what an example gives depend on the others.

    Batch normalisation that keeps no statistics takes those of the batch in evaluation mode too. Instance normalisation
    mixes where it gathers statistics of many examples.
    """
    if isinstance(layer, _BatchNorm):
        return layer.training or not layer.track_running_stats
    return isinstance(layer, _InstanceNorm) and layer.training and layer.track_running_stats


def coupling_layers(model: nn.Module, *, frozen_ok: bool = True) -> list[str]:
    """Return the names of the layers that mix the examples of a batch while `model` trains.

    Args:
        model: Left in the mode it is in.
        frozen_ok: Whether batch normalisation that keeps to its statistics while the rest trains is none of them.
    """
    modes = {module: module.training for module in model.modules()}
    model.train()
    layers = [
        name
        for name, module in model.named_modules()
        if mixes(module) or (isinstance(module, _BatchNorm) and not frozen_ok)
    ]
    for module, mode in modes.items():
        module.training = mode
    return layers


def single_element_norms(model: nn.Module) -> list[str]:
    """Return the names of the group normalisations with one channel a group: to a pooled feature they give zeros."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels
    ]
