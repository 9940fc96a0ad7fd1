"""FedEMA: begin between the global and the local model, as far as they diverge (Zhuang et al., ICLR 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clients.exchanged import divergence, exchanged, values
from clients.local_training import LocalTraining, Outcome
from fedssl.arrays import Arrays
from fedssl.checks import within
from fedssl.memory import Memory
from fedssl.objectives.teacher import TEACHER
from fedssl.wire import TrainTask

_LOCAL, _RECORD = "local", "record"


@dataclass(frozen=True)
class FedEMA(LocalTraining):
    """Begin with `share * local + (1 - share) * global` of every trained and exchanged parameter.

    Encoder and predictor take the same share, `min(scale * divergence, 1)` of the received encoder and the one this
    client trained last; `scale` is such that the first share is `tau`, and stays. A client that did not take part in
    the round before begins with the global model. Buffers are always those that came. The server averages what is
    exchanged (backbone, projector and predictor) as FedAvg does; the teacher stays on the client
    (objective.teacher=keep).

    Attributes:
        tau: Share of the local model when a client first mixes the two.
        reference_compat: Do as the authors' code does instead: measure how far the client's own last training led, set
            `scale` by the first of these, and replace the teacher of a client that missed the round before.

    Raises:
        ValueError: An argument is out of range.
    """

    tau: float = 0.7
    reference_compat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, tau=self.tau)

    def begin(self, initial: Arrays, memory: Memory | None, task: TrainTask) -> Arrays:
        """Return the tensors that training begins with."""
        begun = {**super().begin(initial, memory, task), **self._mixed(memory, task)}
        if self.reference_compat and memory and not _took_part_before(memory, task):
            teacher = {f"{TEACHER}.{name}": array for name, array in task.arrays.items()}
            begun |= {name: array for name, array in teacher.items() if name in memory.tensors}
        return begun

    def end(
        self, model: nn.ModuleDict, memory: Memory | None, task: TrainTask, metrics: Mapping[str, float]
    ) -> Outcome:
        """Keep the trained parameters, and what the next share is made from."""
        trained = values(exchanged(model, task))
        drift = divergence(trained, {**task.arrays, **self._mixed(memory, task)})
        share, scale = self._share(memory, task)
        if self.reference_compat:
            scale = scale or self._scale(drift)
        record = {"round": np.array(task.round), "drift": np.array(drift), "scale": np.array(scale)}
        return Outcome({**metrics, "drift": drift, "local-share": share}, kept={_LOCAL: trained, _RECORD: record})

    def _mixed(self, memory: Memory | None, task: TrainTask) -> dict[str, NDArray[Any]]:
        share, _ = self._share(memory, task)
        if memory is None or share == 0:
            return {}
        return {
            name: np.asarray(share * local.astype(np.float64) + (1 - share) * task.arrays[name], local.dtype)
            for name, local in memory.extras[_LOCAL].items()
        }

    def _share(self, memory: Memory | None, task: TrainTask) -> tuple[float, float]:
        """Return the share of the local model, and the scale behind it, 0 as long as there is none."""
        if memory is None:
            return 0.0, 0.0
        record = memory.extras[_RECORD]
        scale = float(record["scale"])
        if not _took_part_before(memory, task):
            return 0.0, scale
        far = float(record["drift"]) if self.reference_compat else divergence(memory.extras[_LOCAL], task.arrays)
        scale = scale or self._scale(far)
        return min(scale * far, 1.0), scale

    def _scale(self, far: float) -> float:
        return self.tau / far if far > 0 else 0.0


def _took_part_before(memory: Memory, task: TrainTask) -> bool:
    return int(memory.extras[_RECORD]["round"]) == task.round - 1
