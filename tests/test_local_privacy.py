"""What clients noise by themselves: whole messages under local privacy, and steps over examples or cells."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from batches import batch_of
from scipy.stats import norm as normal
from torch import Tensor, nn

from fedssl.arrays import Arrays
from fedssl.models.bundle import build_bundle
from fedssl.models.image import ImageEncoder
from fedssl.objectives.objective import Batch, Objective, Population
from fedssl.objectives.rotnet import RotNet
from fedssl.objectives.simclr import SimClr
from fedssl.privacy.accounting import Release, gaussian_epsilon
from fedssl.privacy.example import Cell, Example, Sampled
from fedssl.privacy.local import Local
from fedssl.privacy.mechanism import Setting, Terms
from fedssl.privacy.noise import NoiseKey
from fedssl.training import private_loop
from fedssl.training.loop import Examples, Schedule, Stream
from fedssl.training.private_loop import PrivateSteps, fit_privately

KEY = NoiseKey.from_seed(5)
BUFFERS = frozenset({"backbone.mean"})


def setting(**changes: object) -> Setting:
    values: dict[str, Any] = {
        "objective": RotNet(), "model": nn.ModuleDict(), "batch_norm": "share", "augmentation": None,
        "procedure": None, "rounds": 1, "epochs": 1, "num_clients": 10, "num_examples": 1000, "cohort": None,
        "fixed_cohort": None, "shows_clients": False,
    }  # fmt: skip
    return Setting(**{**values, **changes})


def sent(trained: Arrays, multiplier: float = 0.0, clip: float = 1.0, round_number: int = 1) -> Arrays:
    received = {name: np.zeros_like(values) for name, values in trained.items()}
    mechanism = Local(noise_multiplier=multiplier, clip=clip, delta=1e-5)
    return mechanism.sent(received, trained, BUFFERS, mechanism.terms(setting()), KEY, (2, round_number))


def test_a_message_is_noised_by_twice_the_clip_times_the_multiplier() -> None:
    values = sent({"backbone.w": np.zeros(40000)}, multiplier=1.5, clip=0.1)["backbone.w"]
    assert values.std() == pytest.approx(2 * 0.1 * 1.5, rel=0.02)
    assert abs(values.mean()) < 4 * 0.3 / 200


def test_a_message_is_clipped_before_noise_and_keeps_its_statistics_to_itself() -> None:
    arrays = sent({"backbone.w": np.array([3.0, 4.0]), "backbone.mean": np.array([9.0])}, clip=0.5)
    assert arrays["backbone.w"] == pytest.approx([0.3, 0.4])
    assert arrays["backbone.mean"] == [0.0]


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_message_without_a_change_is_noise_alone(value: float) -> None:
    zero, other = (sent({"backbone.w": np.array([each, each])}, 1.0)["backbone.w"] for each in (0.0, value))
    assert zero.tobytes() == other.tobytes()


def test_messages_have_noise_of_their_own() -> None:
    first, second = (sent({"backbone.w": np.zeros(20000)}, 1.0, round_number=number)["backbone.w"] for number in (1, 2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(20000)


@pytest.mark.parametrize(("target", "multiplier"), [(0.5, 7.0318), (1, 3.7306), (4, 1.0812), (8, 0.6002), (10, 0.4999)])
def test_the_noise_of_one_message_is_the_least_that_is_enough(target: float, multiplier: float) -> None:
    terms = Local(target_epsilon=target, delta=1e-5).terms(setting())
    assert terms.noise_multiplier == pytest.approx(multiplier, rel=3e-4)
    assert terms.release == Release(2 * terms.noise_multiplier, 1.0, 1.0, 1)


def test_the_textbook_rule_noises_too_little_where_epsilon_is_ten() -> None:
    """Flower's modifier has sqrt(2 ln(1.25 / delta)) / epsilon, proven below one."""
    textbook = math.sqrt(2 * math.log(1.25 / 1e-5)) / 10
    assert textbook == pytest.approx(0.4845, abs=1e-4)
    assert gaussian_epsilon(1 / textbook, 1e-5) == pytest.approx(10.39, abs=0.01)
    assert Local(target_epsilon=10, delta=1e-5).terms(setting()).noise_multiplier > textbook


def test_many_messages_together_come_to_the_target() -> None:
    """Sixteen need four times the noise of one."""
    one, many = (Local(target_epsilon=4, delta=1e-5).terms(setting(rounds=rounds)) for rounds in (1, 16))
    assert many.noise_multiplier == pytest.approx(4 * one.noise_multiplier, rel=3e-4)
    mu = 4 / many.noise_multiplier
    assert normal.cdf(-4 / mu + mu / 2) - math.exp(4) * normal.cdf(-4 / mu - mu / 2) == pytest.approx(1e-5, rel=0.01)


def test_each_client_that_is_asked_is_charged() -> None:
    mechanism = Local(noise_multiplier=1.0)
    charges = mechanism.charges(mechanism.terms(setting()), 1, [3, 0], "key")
    assert [(charge.scope, charge.unit, charge.adjacency) for charge in charges] == [
        ("client 0", "client", "replace_one"), ("client 3", "client", "replace_one"),
    ]  # fmt: skip


class Dots:
    """Distinct examples of 8 by 8 pixels."""

    classes = ("dot",)

    def __init__(self, number: int) -> None:
        self.labels = np.zeros(number, np.int64)
        self.owners = ("",) * number
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        self.seen.append(index)
        return np.random.default_rng(index).integers(0, 255, (1, 8, 8, 1), np.uint8)


class AsIs:
    """Views are the examples."""

    num_uniforms = 0

    def __call__(self, clips: Tensor, uniforms: np.ndarray, role: str, ordinal: int) -> Tensor:
        return clips.float() / 255


def encoder() -> ImageEncoder:
    layers = (nn.Conv2d(1, 4, 3, 2, 1), nn.GroupNorm(1, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))
    return ImageEncoder(nn.Sequential(*layers), 4, (0.5,), (0.25,))


def trained(
    mechanism: Sampled, objective: Objective, dots: Dots, round_number: int = 1, epochs: int = 1, seed: int = 0
) -> tuple[nn.ModuleDict, dict[str, float]]:
    """Train a fresh model for a round of plain SGD with learning rate 1."""
    model = build_bundle(encoder, objective, 0, Population(len(dots), 1))
    std = (mechanism.noise_multiplier or 0.0) * mechanism.clip
    private = PrivateSteps(mechanism, Terms(0.0, 1e-5, Release(std, mechanism.clip, 1.0, 1)), NoiseKey.from_seed(seed))
    numbers = fit_privately(
        model,
        objective,
        Examples(dots, np.arange(len(dots)), AsIs()),
        lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        Schedule(epochs, 8, 1.0, 0.0),
        Stream(0, 0, round_number),
        private,
    )
    return model, numbers


def flat(model: nn.ModuleDict) -> Tensor:
    return torch.cat([value.detach().double().flatten() for value in model.parameters()])


def test_each_example_is_in_a_step_by_its_own_coin(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, chosen = 40, []
    monkeypatch.setattr(private_loop, "_clipped", lambda *args: chosen.append([int(unit[0]) for unit in args[4]]) or ())
    for number in range(1, rounds + 1):
        trained(Example(noise_multiplier=1.0, sampling_rate=0.1), RotNet(), Dots(50), number)
    assert len(chosen) == rounds * 10  # steps of an epoch: one over the rate
    drawn = np.zeros((len(chosen), 50))
    for step, places in enumerate(chosen):
        drawn[step, places] = 1
    assert np.abs(drawn.mean(axis=0) - 0.1).max() < 4 * math.sqrt(0.1 * 0.9 / len(chosen))
    assert drawn.sum(axis=1).var() == pytest.approx(50 * 0.1 * 0.9, rel=0.3)  # binomial, not a fixed size


def test_cells_are_disjoint_the_same_in_every_round_and_each_drawn_by_its_own_coin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[list[tuple[int, ...]]] = []
    monkeypatch.setattr(
        private_loop, "_clipped", lambda *args: chosen.append([tuple(map(int, unit)) for unit in args[4]]) or ()
    )
    mechanism = Cell(noise_multiplier=1.0, sampling_rate=0.25, cell_size=8)
    for number in range(1, 121):
        trained(mechanism, RotNet(), Dots(50), number)
    cells = sorted({cell for step in chosen for cell in step}, key=len)
    assert [len(cell) for cell in cells] == [2, *[8] * 6]
    assert sorted(place for cell in cells for place in cell) == list(range(50))
    counts = np.array([sum(cell in step for step in chosen) for cell in cells])
    assert np.abs(counts / len(chosen) - 0.25).max() < 4 * math.sqrt(0.25 * 0.75 / len(chosen))


def test_a_step_divides_by_the_expected_number_and_takes_the_noise_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is drawn: the model moves by noise alone, which is the ledger's over rate times examples."""
    monkeypatch.setattr(private_loop, "_clipped", lambda *_: ())
    before = flat(build_bundle(encoder, RotNet(), 0, Population(50, 1)))
    moved = [
        flat(trained(Example(noise_multiplier=2.0, clip=0.5, sampling_rate=0.5), RotNet(), Dots(50), n)[0]) - before
        for n in range(1, 21)
    ]
    two_steps = math.sqrt(2) * 2.0 * 0.5 / (0.5 * 50)
    assert torch.stack(moved).std().item() == pytest.approx(two_steps, rel=0.05)


def test_a_step_that_nobody_is_in_is_taken_and_reports_no_loss() -> None:
    before = flat(build_bundle(encoder, RotNet(), 0, Population(1, 1)))
    model, numbers = trained(Example(noise_multiplier=1.0, sampling_rate=0.5), RotNet(), Dots(0))
    assert numbers == {"num-steps": 2.0}
    assert (flat(model) != before).any()


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_step_is_the_same_however_many_examples_are_computed_at_once(batch: int) -> None:
    def model(size: int) -> Tensor:
        bundle = build_bundle(encoder, RotNet(), 0, Population(12, 1))
        mechanism = Example(noise_multiplier=0.0, sampling_rate=1.0)
        fit_privately(
            bundle, RotNet(), Examples(Dots(12), np.arange(12), AsIs()),
            lambda parameters: torch.optim.SGD(parameters, lr=1.0), Schedule(1, size, 1.0, 0.0), Stream(0, 0, 1),
            PrivateSteps(mechanism, Terms(0.0, 1e-5, Release(0.0, 1.0, 1.0, 1)), KEY),
        )  # fmt: skip
        return flat(bundle)

    assert model(batch) == pytest.approx(model(12), abs=1e-6)


def cell_of(size: int, trial: int, objective: Objective) -> Batch:
    rng = torch.Generator().manual_seed(trial)
    return batch_of(*(torch.rand(size, 1, 1, 8, 8, generator=rng) for _ in objective.views))


def test_without_a_cell_the_sum_moves_by_at_most_the_clip_with_negatives_and_batch_statistics_inside() -> None:
    """A cell adds a vector of at most the clip, and the others do not see it."""
    objective, clip = SimClr(0.1, 8, 4, "batch"), 1e-3  # below every gradient: the bound is attained
    model = build_bundle(encoder, objective, 0, Population(24, 1))
    assert any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules())
    model.train()
    cells = [cell_of(8, trial, objective) for trial in range(4)]

    def total(some: list[Batch]) -> Tensor:
        sums = [private_loop._of_cell(model, objective, cell, clip)[0] for cell in some]
        return torch.stack([torch.cat([each.flatten() for each in one.values()]).double() for one in sums]).sum(dim=0)

    moves = [(total(cells) - total([*cells[:gone], *cells[gone + 1 :]])).norm().item() / clip for gone in range(4)]
    assert moves == pytest.approx([1.0] * 4, rel=1e-4)
    changed = total([cell_of(8, 9, objective), *cells[1:]])
    assert (total(cells) - changed).norm().item() / clip <= 2 + 1e-4  # another example in a cell is another cell


def test_a_cell_whose_gradient_is_no_number_counts_as_zero() -> None:
    objective = SimClr(hidden=8, dim=4)
    model = build_bundle(encoder, objective, 0, Population(8, 1))
    sums, _, norms = private_loop._of_cell(
        model, objective, batch_of(*[torch.full((8, 1, 1, 8, 8), math.nan)] * 2), 1.0
    )
    assert sums == {}
    assert not math.isfinite(norms[0])


def test_a_cell_that_is_too_small_for_the_loss_is_left_out() -> None:
    dots = Dots(9)
    trained(Cell(noise_multiplier=1.0, sampling_rate=1.0, cell_size=8), SimClr(hidden=8, dim=4), dots)
    assert len(set(dots.seen)) == 8


@pytest.mark.parametrize("mechanism", [Example(noise_multiplier=1.0), Cell(noise_multiplier=1.0)])
def test_what_no_noised_step_trained_is_sent_as_it_came(mechanism: Sampled) -> None:
    """Statistics of batch normalisation are those of the client's data."""
    received = {"backbone.w": np.array([1.0]), "backbone.mean": np.array([2.0])}
    trained = {"backbone.w": np.array([3.0]), "backbone.mean": np.array([4.0])}
    arrays = mechanism.sent(received, trained, BUFFERS, mechanism.terms(setting()), KEY, (0, 1))
    assert arrays == {"backbone.w": [3.0], "backbone.mean": [2.0]}


def test_steps_are_charged_by_the_round_and_coins_are_the_only_amplification() -> None:
    mechanism = Example(noise_multiplier=1.0, sampling_rate=0.05)
    assert mechanism.rate_and_count(setting(epochs=3, cohort=2)) == (0.05, 60)
    assert mechanism.num_units(setting()) == 1000
    assert mechanism.terms(setting()).delta == pytest.approx(1e-4)
