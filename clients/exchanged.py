"""The parameters that a client trains and exchanges: what most federated methods hold on to or measure."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedssl.arrays import Arrays
from fedssl.models.bundle import BACKBONE
from fedssl.wire import TrainTask


def exchanged(model: nn.ModuleDict, task: TrainTask) -> dict[str, nn.Parameter]:
    """Return the trained parameters whose values came with the task, by tensor name."""
    parameters = model.named_parameters()
    return {name: parameter for name, parameter in parameters if parameter.requires_grad and name in task.arrays}


def values(parameters: dict[str, nn.Parameter]) -> dict[str, NDArray[Any]]:
    """Return a copy of the values of parameters."""
    return {name: parameter.detach().cpu().numpy().copy() for name, parameter in parameters.items()}


def divergence(first: Arrays, second: Arrays) -> float:
    """Return the mean over the backbone's weights of the L2 distance between their values in two models.

    Weights are the tensors of at least two dimensions: of a convolutional network its kernels, as in FedU's code.

    Args:
        first: Trained parameters of one model by name.
        second: Tensors of another, those of `first` among them.

    Raises:
        ValueError: `first` has no weights of the backbone.
    """
    weights = [name for name, array in first.items() if name.startswith(f"{BACKBONE}.") and array.ndim > 1]
    if not weights:
        raise ValueError(f"{BACKBONE} must be exchanged and have weights, to measure how far two models are apart")
    distances = [np.sqrt(np.square(np.subtract(first[name], second[name], dtype=np.float64)).sum()) for name in weights]
    return float(np.mean(distances))
