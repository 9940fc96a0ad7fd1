"""LayerMem: how much of SSLMem each stage of an encoder adds (Wang et al. 2024).

"Localizing Memorization in SSL Vision Encoders".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.privacy.audit.sslmem import Curve, memorisation


def stages(encoder: nn.Module) -> dict[str, nn.Module]:
    """Return the stages of an encoder in order, by their names.

    They are what has parameters in that `Sequential` which has most of them, of those that hold two such parts or more:
    stem and layers of a residual network, blocks of a transformer. An encoder without one has no stages.
    """
    found = [_trained(module) for module in encoder.modules() if isinstance(module, nn.Sequential)]
    return max((parts for parts in found if len(parts) > 1), key=_num_parameters, default={})


class Staged(nn.Module):
    """An encoder of which the stages are asked, not the features.

    Args:
        encoder: Maps clips `[batch, channels, frames, height, width]`; is used as it is, not copied.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        """Return the pooled output `[batch, width]` of each stage."""
        outputs: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            outputs.append(_pooled(output, len(clips)))

        hooks = [stage.register_forward_hook(keep) for stage in stages(self.encoder).values()]
        try:
            self.encoder(clips)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(outputs)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one stage memorises, in units of distance of its pooled output at unit length.

    Attributes:
        candidate: Mean SSLMem of the examples that only the run saw.
        independent: Mean of those that only its twin saw; negative where they are memorised.
        increase: Of `candidate` over the stage before; over 0 for the first, as both see the same input.
    """

    candidate: float
    independent: float
    increase: float


def report(names: Sequence[str], alignments: Sequence[Curve], included: NDArray[np.bool_]) -> dict[str, Layer]:
    """Return what each stage memorises, by its name.

    Args:
        names: Of the stages, in order.
        alignments: Alignment `[n]` by each stage of the run's encoder, then by each of its twin's.
        included: `[n]` whether only the run saw an example; only the twin saw the others.
    """
    layers: dict[str, Layer] = {}
    before = 0.0
    for name, own, other in zip(names, alignments[: len(names)], alignments[len(names) :], strict=True):
        scores = memorisation([own], [other])
        candidate, independent = float(scores[included].mean()), float(scores[~included].mean())
        layers[name] = Layer(candidate, independent, candidate - before)
        before = candidate
    return layers


def _trained(module: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in module.named_children() if any(True for _ in part.parameters())}


def _num_parameters(parts: dict[str, nn.Module]) -> int:
    return sum(parameter.numel() for part in parts.values() for parameter in part.parameters())


def _pooled(output: Tensor, batch: int) -> Tensor:
    """Return the mean `[batch, width]` over places, tokens and frames.

    Args:
        output: A map `[batch * frames, width, ...]` of two or three sides, or tokens `[batch * frames, n, width]`.
        batch: Number of clips.
    """
    rows = output.flatten(2).transpose(1, 2) if output.ndim > 3 else output
    by_clip: Tensor = rows.unflatten(0, (batch, -1))
    return by_clip.flatten(1, -2).mean(dim=1)
