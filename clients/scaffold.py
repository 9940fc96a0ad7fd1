"""SCAFFOLD: local steps corrected by control variates, client side (Karimireddy et al. 2020, option II)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.exchanged import exchanged
from clients.local_training import LocalTraining, Outcome
from fedssl.arrays import Arrays
from fedssl.memory import Memory
from fedssl.models import bundle
from fedssl.objectives.objective import Objective
from fedssl.training.loop import LocalRule
from fedssl.wire import TrainTask

VARIATE = "variate"


@dataclass(frozen=True)
class Scaffold(LocalTraining):
    """Add `c - c_k` to each gradient, the server's variate minus the client's own; for strategy=scaffold.

    Afterwards `c_k` becomes the mean gradient of the round's steps, found from how far they led as option II does:
    `c_k - c + (received - trained) / reach`, where `reach` is how far steps along a constant gradient of 1 lead. That
    is steps times learning rate for plain SGD, the published case, and no less exact with momentum, whose steps are
    linear in the gradients too; the mean then gives the first gradients of a round more weight. Weight decay counts
    as part of the gradient.

    Raises:
        ValueError: An argument is out of range, or the optimizer is no SGD.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        optimizer = self.optimizer([nn.Parameter(torch.zeros(1))])
        if not isinstance(optimizer, torch.optim.SGD):
            kind = type(optimizer).__name__
            raise ValueError(f"optimizer must be torch.optim.SGD, whose steps are linear in gradients, got {kind}")

    def rule(self, model: nn.ModuleDict, objective: Objective, memory: Memory | None, task: TrainTask) -> LocalRule:
        """Return the correction of this client's gradients in this round.

        Raises:
            ValueError: The server sent no variate.
        """
        server, own = _variates(memory, task)
        parameters = exchanged(model, task)
        return _Correction(
            [(p, torch.tensor(server[name] - own[name], device=p.device)) for name, p in parameters.items()]
        )

    def end(
        self, model: nn.ModuleDict, memory: Memory | None, task: TrainTask, metrics: Mapping[str, float]
    ) -> Outcome:
        """Keep this client's new variate, and send how it changed."""
        server, own = _variates(memory, task)
        trained = bundle.arrays(model, None, copy=False)
        reach = self._reach(task, int(metrics["num-steps"]))

        def renewed(name: str) -> NDArray[Any]:
            moved = np.subtract(task.arrays[name], trained[name], dtype=np.float64)
            return np.asarray(own[name] - server[name] + moved / reach, server[name].dtype)

        kept = {name: renewed(name) for name in server}
        sent = {name: np.asarray(kept[name] - own[name]) for name in server}
        return Outcome(metrics, sent={VARIATE: sent}, kept={VARIATE: kept})

    def _reach(self, task: TrainTask, num_steps: int) -> float:
        """Return how far `num_steps` of this round's optimizer lead against a constant gradient of 1."""
        place = nn.Parameter(torch.zeros((), dtype=torch.float64))
        optimizer = self.optimizer([place])
        for group in optimizer.param_groups:
            group["lr"] *= self.rate_factor(task)
            group["weight_decay"] = 0.0
        place.grad = torch.ones_like(place)
        for _ in range(num_steps):
            optimizer.step()
        return -place.item()


class _Correction(LocalRule):
    def __init__(self, corrections: list[tuple[nn.Parameter, Tensor]]) -> None:
        self._corrections = corrections

    def correct(self, model: nn.ModuleDict) -> None:
        for parameter, correction in self._corrections:
            # A parameter that the loss does not use has a gradient of 0.
            parameter.grad = correction.clone() if parameter.grad is None else parameter.grad.add_(correction)


def _variates(memory: Memory | None, task: TrainTask) -> tuple[Arrays, Arrays]:
    """Return the server's variate, and this client's own, which begins at 0."""
    if VARIATE not in task.extras:
        raise ValueError("client=scaffold needs strategy=scaffold: the server sent no control variate")
    server = task.extras[VARIATE]
    own = memory.extras[VARIATE] if memory else {name: np.zeros_like(array) for name, array in server.items()}
    return server, own
