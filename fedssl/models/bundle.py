"""A backbone with an objective's modules, whose tensor-name prefixes say what is shared."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedssl.arrays import Arrays
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Objective, Population
from fedssl.seeding import torch_stream

BACKBONE = "backbone"
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _FrozenNorms(nn.ModuleDict):
    """Modules whose batch normalisation keeps to its statistics, also while the rest trains."""

    def train(self, mode: bool = True) -> "_FrozenNorms":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        return self


def build_bundle(
    make_encoder: Callable[[], Encoder],
    objective: Objective,
    seed: int,
    population: Population | None = None,
    *,
    frozen_norms: bool = False,
) -> nn.ModuleDict:
    """Return the encoder as "backbone" beside the groups of `objective.build`.

    Args:
        make_encoder: Returns a freshly initialised encoder.
        objective: Owner of the other groups.
        seed: The run's seed; the same seed gives the same tensors, and the global generator is left as it was.
        population: What sizes may depend on, see `Objective.build`; None where nothing is known.
        frozen_norms: Whether batch normalisation never changes its statistics, nor uses those of a batch.

    Returns:
        Modules by group; a tensor's name starts with its group.

    Raises:
        ValueError: If the objective calls a group "backbone".
    """
    with torch_stream(seed, "init"):
        encoder = make_encoder()
        groups = objective.build(encoder, population or Population(0))
    if BACKBONE in groups:
        raise ValueError(f"objective must not build a group named {BACKBONE!r}")
    return (_FrozenNorms if frozen_norms else nn.ModuleDict)({BACKBONE: encoder, **groups})


def arrays(model: nn.ModuleDict, groups: Collection[str] | None, *, copy: bool = True) -> dict[str, NDArray[Any]]:
    """Return the tensors of `groups`, parameters and buffers, in the order of the state dict.

    Args:
        model: A bundle.
        groups: Names of groups; None means all of them.
        copy: False returns views of a model on the CPU, which its next step changes.

    Returns:
        Arrays by tensor name, e.g. "backbone.body.0.0.weight".

    Raises:
        ValueError: If a group is not of `model`.
    """
    wanted = set(model.keys()) if groups is None else set(groups)
    unknown = sorted(wanted - set(model.keys()))
    if unknown:
        raise ValueError(f"groups must be among {', '.join(sorted(model.keys()))}, got {', '.join(unknown)}")
    state = model.state_dict()
    views = {name: state[name].cpu().numpy() for name in state if name.split(".")[0] in wanted}
    return {name: view.copy() for name, view in views.items()} if copy else views


def load(model: nn.Module, arrays: Arrays) -> None:
    """Copy `arrays` into the tensors of the same names, in place; the other tensors stay as they are.

    Nothing is copied unless everything fits.

    Args:
        model: The owner of the tensors.
        arrays: Values by tensor name.

    Raises:
        ValueError: If a name is unknown, or a shape or a dtype differs from the tensor's.
    """
    state = model.state_dict()
    for name, array in arrays.items():
        if name not in state:
            raise ValueError(f"{name} is not a tensor of the model")
        _check(name, array, state[name])
    with torch.no_grad():
        for name, array in arrays.items():
            _copy(array, state[name])


def group(arrays: Arrays, name: str) -> Arrays:
    """Return the tensors of a group under the names that the module itself gives them."""
    prefix = f"{name}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def norm_names(model: nn.Module) -> frozenset[str]:
    """Return the names in the state dict that belong to batch normalisation, parameters and statistics."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BATCH_NORMS)]
    return frozenset(f"{name}.{tensor}" for name, layer in layers for tensor in layer.state_dict())


def buffer_names(model: nn.Module) -> frozenset[str]:
    """Return the names in the state dict that no optimizer trains, e.g. running means."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return frozenset(model.state_dict()) - parameters


def _copy(array: NDArray[Any], tensor: torch.Tensor) -> None:
    """Copy once; NumPy takes read-only arrays, which PyTorch does not."""
    if tensor.device.type == "cpu":
        np.copyto(tensor.numpy(), array)
    else:
        tensor.copy_(torch.from_numpy(np.array(array)))


def _check(name: str, array: NDArray[Any], tensor: torch.Tensor) -> None:
    """Raise ValueError unless `array` can replace `tensor`."""
    if array.shape != tuple(tensor.shape):
        raise ValueError(f"{name} must have shape {tuple(tensor.shape)}, got {array.shape}")
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    if array.dtype != dtype:
        raise ValueError(f"{name} must have dtype {dtype}, got {array.dtype}")
