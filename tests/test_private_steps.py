"""What private steps move a model by: clips over the expected number, and noise and coins that nothing shares."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from test_local_privacy import AsIs, Dots, encoder, flat, setting
from torch import Tensor

from fedssl.models.bundle import build_bundle
from fedssl.objectives.objective import Population
from fedssl.objectives.rotnet import RotNet
from fedssl.privacy.accounting import Release
from fedssl.privacy.client import Client
from fedssl.privacy.example import Example
from fedssl.privacy.gradients import EngineName
from fedssl.privacy.local import Local
from fedssl.privacy.mechanism import Mechanism, Terms
from fedssl.privacy.noise import NoiseKey
from fedssl.training import private_loop
from fedssl.training.loop import Examples, Schedule, Stream
from fedssl.training.private_loop import PrivateSteps, fit_privately

CLIP = 1e-4  # below every gradient, and too small to turn the next one
KEY = NoiseKey.from_seed(5)


class Alike(Dots):
    """Examples that all show the same."""

    def read(self, index: int) -> np.ndarray:
        return super().read(0)


def moved(
    number: int, rate: float, noise: float = 0.0, partition: int = 0, round_number: int = 1,
    engine: EngineName = "ghost",
) -> Tensor:  # fmt: skip
    """Return how far the steps of a round move the untrained model, with a learning rate of 1."""
    model = build_bundle(encoder, RotNet(), 0, Population(number, 1))
    before = flat(model)
    mechanism = Example(noise_multiplier=noise, clip=CLIP, sampling_rate=rate, engine=engine)
    fit_privately(
        model,
        RotNet(),
        Examples(Alike(number), np.arange(number), AsIs()),
        lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        Schedule(1, 8, 1.0, 0.0),
        Stream(0, partition, round_number),
        PrivateSteps(mechanism, Terms(noise, 1e-5, Release(noise * CLIP, CLIP, rate, 1)), KEY),
    )
    return flat(model) - before


def coins(number: int, step: int, partition: int = 0, round_number: int = 1) -> np.ndarray:
    return KEY.generator("sample", partition, round_number, step).random(number)


@pytest.mark.parametrize("engine", ["ghost", "functional", "hooks"])
def test_an_example_alone_moves_the_model_by_the_clip(engine: EngineName) -> None:
    assert moved(1, 1.0, engine=engine).norm().item() == pytest.approx(CLIP, rel=1e-3)


@pytest.mark.parametrize("number", [3, 8])
def test_each_that_is_drawn_adds_a_clip_over_the_expected_number(number: int) -> None:
    """All point the same way, so lengths add up: by those drawn in both steps, never by how many were drawn at once."""
    drawn = sum(int((coins(number, step) < 0.5).sum()) for step in (0, 1))
    assert 0 < drawn != number
    assert moved(number, 0.5).norm().item() == pytest.approx(drawn * CLIP / (0.5 * number), rel=1e-3)


@cache
def noise_alone(partition: int, round_number: int) -> Tensor:
    """One step that nobody is in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_loop, "_clipped", lambda *_: ())
        return moved(4, 1.0, 1.0, partition, round_number)


@pytest.mark.parametrize("other", [(1, 1), (0, 2)], ids=["client", "round"])
def test_the_noise_of_another_client_or_round_is_independent(other: tuple[int, int]) -> None:
    both = torch.stack((noise_alone(0, 1), noise_alone(*other)))
    assert abs(torch.corrcoef(both)[0, 1].item()) < 4 / both.shape[1] ** 0.5


def test_every_tensor_has_noise_of_its_own() -> None:
    """Were they drawn alike, the shorter would be what the longer begins with."""
    sizes = [value.numel() for value in build_bundle(encoder, RotNet(), 0, Population(4, 1)).parameters()]
    for one, other in combinations(noise_alone(0, 1).split(sizes), 2):
        shorter = min(len(one), len(other))
        assert (one[:shorter] - other[:shorter]).abs().max() > CLIP / 100


@pytest.mark.parametrize("other", [(1, 0, 1), (0, 1, 1), (0, 0, 2)], ids=["step", "client", "round"])
def test_coins_of_another_step_client_or_round_are_thrown_anew(
    other: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[tuple[int, int, int], list[int]] = {}
    for partition, round_number in ((0, 1), (1, 1), (0, 2)):
        steps: list[list[int]] = []
        monkeypatch.setattr(
            private_loop, "_clipped", lambda *args, steps=steps: steps.append([int(unit[0]) for unit in args[4]]) or ()
        )
        moved(40, 0.5, 1.0, partition, round_number)
        chosen |= {(step, partition, round_number): one for step, one in enumerate(steps)}
    assert chosen[0, 0, 1] != chosen[other]
    assert chosen[0, 0, 1] == np.flatnonzero(coins(40, 0) < 0.5).tolist()


@pytest.mark.parametrize(
    "mechanism",
    [
        Local(noise_multiplier=1.0, delta=1e-5),
        Client(
            noise_multiplier=1.0, secure_aggregation=True, min_survivors=4, amplification="none", adjacency="zero_out"
        ),
    ],
    ids=["message", "share"],
)
@pytest.mark.parametrize("other", [(1, 1), (0, 2)], ids=["client", "round"])
def test_the_noise_of_another_client_s_or_round_s_message_is_independent(
    mechanism: Mechanism, other: tuple[int, int]
) -> None:
    zeros = {"backbone.w": np.zeros(20_000)}
    terms = mechanism.terms(setting())
    both = [mechanism.sent(zeros, zeros, frozenset(), terms, KEY, path)["backbone.w"] for path in ((0, 1), other)]
    assert abs(np.corrcoef(both)[0, 1]) < 4 / 20_000**0.5
