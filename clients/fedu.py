"""FedU: the global encoder, and the global or the local predictor by divergence (Zhuang et al., ICCV 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clients.exchanged import divergence, exchanged, values
from clients.local_training import LocalTraining, Outcome
from fedssl.arrays import Arrays
from fedssl.checks import at_least
from fedssl.memory import Memory
from fedssl.wire import TrainTask

_PREDICTOR, _DRIFT = "predictor", "drift"


@dataclass(frozen=True)
class FedU(LocalTraining):
    """Begin with the global model, but keep the local predictor where training led far from the global encoder.

    The server averages what is exchanged, the predictor among it, as FedAvg does; the teacher stays on the client
    (objective.teacher=keep). Of a local predictor the parameters are kept: buffers are always those that came.

    Attributes:
        threshold: The local predictor is kept when `divergence` between the encoder before and after the client's
            last training was at least this; published for the kernels of ResNet-18.

    Raises:
        ValueError: An argument is out of range.
    """

    threshold: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, threshold=self.threshold)

    def begin(self, initial: Arrays, memory: Memory | None, task: TrainTask) -> Arrays:
        """Return the tensors that training begins with.

        Raises:
            ValueError: No predictor is exchanged, so that there is none to choose from.
        """
        if not any(name.startswith(f"{_PREDICTOR}.") for name in task.arrays):
            raise ValueError("client=fedu needs an objective with a predictor, and a strategy that exchanges it")
        begun = super().begin(initial, memory, task)
        if memory is None or float(memory.extras[_DRIFT][_DRIFT]) < self.threshold:
            return begun
        return {**begun, **memory.extras[_PREDICTOR]}

    def end(
        self, model: nn.ModuleDict, memory: Memory | None, task: TrainTask, metrics: Mapping[str, float]
    ) -> Outcome:
        """Keep the local predictor, and how far the encoder went."""
        trained = values(exchanged(model, task))
        drift = divergence(trained, task.arrays)
        predictor = {name: array for name, array in trained.items() if name.startswith(f"{_PREDICTOR}.")}
        kept: dict[str, dict[str, NDArray[Any]]] = {_PREDICTOR: predictor, _DRIFT: {_DRIFT: np.array(drift)}}
        return Outcome({**metrics, "drift": drift}, kept=kept)
