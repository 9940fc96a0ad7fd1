"""LARS: no layer steps further than in proportion to its own length (You 2017).

"Large Batch Training of Convolutional Networks", with the clipped ratio that self-supervised recipes use.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fedssl.checks import above, at_least


class Lars(torch.optim.Optimizer):
    """Momentum, with the rate min(lr, trust * length of the tensor / length of its gradient).

    Biases and normalisation (tensors of one dimension) take plain steps without weight decay.

    Args:
        params: Parameters.
        lr: Learning rate.
        momentum: Share of the last step that is kept.
        weight_decay: Added to the gradient, times the parameter.
        trust: Greatest step without momentum, as a share of the parameter's length.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        trust: float = 0.02,
    ) -> None:
        at_least(0, lr=lr, momentum=momentum, weight_decay=weight_decay)
        above(0, trust=trust)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; return the loss of `closure`, which is called first if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        if parameter.ndim > 1:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
            lengths = parameter.norm(), gradient.norm()
            scale = torch.where((lengths[0] > 0) & (lengths[1] > 0), group["trust"] * lengths[0] / lengths[1], 1.0)
            gradient = gradient * torch.clamp(scale / max(group["lr"], 1e-12), max=1.0)
        state = self.state[parameter]
        kept = state.setdefault("momentum", torch.zeros_like(parameter))
        kept.mul_(group["momentum"]).add_(gradient)
        parameter.add_(kept, alpha=-group["lr"])
