"""What the layers of a network were called with in a step, and which rows of it belong to which example."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from fedssl.objectives.objective import Batch, Objective, Step

OTHERWISE = "otherwise privacy.engine must be functional"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer whose result has a graph.

    Attributes:
        layer: Name of the layer.
        inputs: `[rows, ...]`, without their graph.
        version: How often the inputs had been changed in place.
        outputs: Where the result is in the graph; what changes it in place afterwards comes later in the graph.
    """

    layer: str
    inputs: Tensor
    version: int
    outputs: GradientEdge


class Recorded(NamedTuple):
    """A step, and the calls of layers in it."""

    step: Step
    calls: list[Call]


def owners(model: nn.Module, known: Mapping[type[nn.Module], object]) -> dict[str, nn.Module]:
    """Return the layers that own trainable parameters, by name.

    Args:
        model: The bundle.
        known: The types of layers whose `weight` and `bias` an engine knows.

    Raises:
        ValueError: A trainable parameter belongs to something else, or to two layers.
    """
    layers: dict[str, nn.Module] = {}
    seen: dict[nn.Parameter, str] = {}
    for layer, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=layer, recurse=False):
            if not parameter.requires_grad:
                continue
            if kind(module, known) is None or name.split(".")[-1] not in ("weight", "bias"):
                names = ", ".join(each.__name__ for each in known)
                found = type(module).__name__
                raise ValueError(f"{name} must be the weight or bias of one of {names}, got {found}; {OTHERWISE}")
            if parameter in seen:
                raise ValueError(f"{name} must not be {seen[parameter]} too; {OTHERWISE}")
            seen[parameter] = name
            layers[layer] = module
    return layers


def kind(module: nn.Module, known: Mapping[type[nn.Module], object]) -> type[nn.Module] | None:
    """Return which of the known types a layer computes as."""
    same = (each for each in known if isinstance(module, each) and type(module).forward is each.forward)
    return next(same, None)


def record(model: nn.ModuleDict, objective: Objective, batch: Batch, layers: Mapping[str, nn.Module]) -> Recorded:
    """Take the objective's step and return it with the calls of the layers in it.

    Raises:
        ValueError: The loss weighs labelled and unlabelled examples by how many there are.
    """
    calls: list[Call] = []
    with _listening(layers, calls):
        step = objective.step(model, batch)
    if step.terms is not None:
        raise ValueError(
            f"the loss must be a mean over examples of one kind, got labelled ones and others; {OTHERWISE}"
        )
    return Recorded(step, calls)


@contextmanager
def _listening(layers: Mapping[str, nn.Module], calls: list[Call]) -> Iterator[None]:
    def listener(layer: str) -> Any:  # noqa: ANN401 - PyTorch's type of a hook
        def listen(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                inputs = args[0].detach()
                calls.append(Call(layer, inputs, inputs._version, get_gradient_edge(output)))

        return listen

    handles = [module.register_forward_hook(listener(layer)) for layer, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def consecutive_rows(
    model: nn.ModuleDict, objective: Objective, batch: Batch, layers: Mapping[str, nn.Module], calls: list[Call]
) -> list[int]:
    """Return for each call how many rows in a row are of the same example: row r is of example r // number % batch.

    One is for views put after each other, the number of frames for a network that sees each frame as an image. It is
    measured: of two examples the second is NaN, and so become its rows.

    Raises:
        ValueError: The rows of a call do not follow each other in this way.
    """
    size = len(batch.places)
    if size == 1:
        return [len(call.inputs) for call in calls]
    pair = batch.where(torch.arange(size, device=batch.places.device) < 2)
    views = tuple(torch.stack((torch.zeros_like(view[0]), torch.full_like(view[0], torch.nan))) for view in pair.views)
    devices = [batch.places.device] if batch.places.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        probe = record(model, objective, replace(pair, views=views), layers).calls
    if [call.layer for call in probe] != [call.layer for call in calls]:
        raise ValueError(f"a step must call the same layers for two examples as for {size}; {OTHERWISE}")
    return [_consecutive(call, size, seen.inputs) for call, seen in zip(calls, probe, strict=True)]


def _consecutive(call: Call, size: int, pair: Tensor) -> int:
    second = pair.flatten(1).isnan().any(dim=1)
    number = int(second.int().argmax()) if len(second) else 0
    expected = torch.arange(len(pair), device=pair.device) // max(1, number) % 2 == 1
    regular = number > 0 and len(pair) % (2 * number) == 0 and torch.equal(second, expected)
    if not regular or len(call.inputs) * 2 != len(pair) * size:
        raise ValueError(f"rows of {call.layer} must be of one example each, as many of every one; {OTHERWISE}")
    return number


def check_uses(loss: Tensor, layers: Mapping[str, nn.Module], calls: Counter[str]) -> None:
    """Check that the loss depends on parameters through the calls of their layers alone.

    Args:
        loss: With its graph.
        layers: By name.
        calls: How many calls of each layer the loss depends on.

    Raises:
        ValueError: A parameter is used elsewhere.
    """
    uses: Counter[Tensor] = Counter()
    waiting: list[Node | None] = [loss.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        for after, _ in node.next_functions if node else ():
            if after is not None and hasattr(after, "variable"):
                uses[after.variable] += 1
            elif after not in seen:
                seen.add(after)
                waiting.append(after)
    for layer, module in layers.items():
        for name, parameter in module.named_parameters(prefix=layer, recurse=False):
            if parameter.requires_grad and uses[parameter] != calls[layer]:
                raise ValueError(
                    f"{name} must be used by its layer alone, in calls that the loss depends on; {OTHERWISE}"
                )
