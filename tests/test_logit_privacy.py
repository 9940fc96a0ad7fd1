"""Noise on pairs of a contrastive loss: the sum by its definition, and how far one example moves it."""

import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from batches import batch_of
from test_private_runs import TINY, charges, ran
from test_sensitivity import encoder_of
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.models.bundle import build_bundle
from fedssl.objectives.objective import Batch, Population
from fedssl.objectives.simclr import SimClr
from fedssl.privacy.accounting import Release, epsilon
from fedssl.privacy.gradients import EngineName, Gradients, engine
from fedssl.privacy.logit import largest_move, pair_gradients, pair_weights
from simulate import main

NOISE = ("privacy=logit", "privacy.noise_multiplier=1", "privacy.accountant=rdp", "privacy.sampling_rate=0.5")
LOGIT = (*NOISE, "objective=simclr", "objective.temperature=0.5", "objective.hidden=16", "objective.dim=8")
TEMPERATURES = (0.5, 1.0, 4.0)


def case(size: int, temperature: float = 0.5, trial: int = 0) -> tuple[nn.ModuleDict, SimClr, Batch]:
    """A network in double precision, and a batch of two views."""
    objective = SimClr(temperature, hidden=8, dim=4)
    model = build_bundle(lambda: encoder_of(objective), objective, trial, Population(size, 1)).double().train()
    rng = torch.Generator().manual_seed(trial)
    return model, objective, batch_of(*(torch.rand(size, 1, 1, 8, 8, generator=rng).double() for _ in range(2)))


def gradients(model: nn.ModuleDict, objective: SimClr, batch: Batch, clip: float, at_once: int = 64) -> Gradients:
    return pair_gradients(engine("ghost"), model, objective, batch, clip, at_once)


def flat(found: Gradients) -> Tensor:
    return torch.cat([values.flatten() for values in found.sums.values()])


def by_the_definition(model: nn.ModuleDict, objective: SimClr, batch: Batch, clip: float) -> Tensor:
    """One pair after the other; weights are derivatives of the loss by what is compared."""
    parameters = list(model.parameters())
    made = F.normalize(torch.cat(objective.embeddings(model, batch)), dim=1)
    similarities = (made @ made.T / objective.temperature).detach().requires_grad_()
    others = similarities.masked_fill(torch.eye(len(made), dtype=torch.bool), -math.inf)
    losses = F.cross_entropy(others, torch.arange(len(made)).roll(len(batch.places)), reduction="none")
    weights = torch.autograd.grad(losses.sum() / 2, similarities)[0]
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    for one, other in combinations(range(len(made)), 2):
        found = torch.autograd.grad(made[one] @ made[other] / objective.temperature, parameters, retain_graph=True)
        gradient = torch.cat([part.flatten() for part in found])
        weight = weights[one, other] + weights[other, one]
        total += weight * gradient * min(1.0, clip / gradient.norm().item())
    return total


@pytest.mark.parametrize("name", ["ghost", "functional", "hooks"])
@pytest.mark.parametrize("at_once", [7, 1000])
def test_the_sum_is_that_of_pairs_one_by_one(name: EngineName, at_once: int) -> None:
    model, objective, batch = case(4)
    norms = gradients(model, objective, batch, 1.0).norms
    assert len(norms) == 8 * 7 / 2
    clip = norms.median().item()  # some pairs are clipped and some are not
    found = pair_gradients(engine(name), model, objective, batch, clip, at_once)
    assert flat(found) == pytest.approx(by_the_definition(model, objective, batch, clip), rel=1e-9, abs=1e-12)
    assert found.loss == pytest.approx(objective.step(model, batch).loss.item())


def test_without_a_clip_it_is_the_gradient_of_the_loss_times_the_examples() -> None:
    model, objective, batch = case(5)
    loss = len(batch.places) * objective.step(model, batch).loss
    plain = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])
    assert flat(gradients(model, objective, batch, 1e9)) == pytest.approx(plain, rel=1e-9, abs=1e-12)


def test_one_example_alone_and_none_add_nothing() -> None:
    for size in (0, 1):
        found = gradients(*case(size), 1.0)
        assert not flat(found).any()
        assert not len(found.norms)
    assert pair_weights(torch.randn(2, 3), 0.5).abs().max() == 0  # nothing to tell the partner from


def test_who_has_no_finite_embedding_counts_as_absent() -> None:
    model, objective, batch = case(4)
    batch.views[1][2] = math.nan
    rest = batch.where(torch.tensor([True, True, False, True]))
    assert torch.equal(flat(gradients(model, objective, batch, 0.1)), flat(gradients(model, objective, rest, 0.1)))


def weights_moved(embeddings: Tensor, temperature: float) -> Tensor:
    """How far the sum moves without the first example where every pair's gradient is as long, and as bad, as can be."""
    size = len(embeddings) // 2
    rest = torch.tensor([row for row in range(2 * size) if row % size])
    moved = pair_weights(embeddings, temperature)
    left = torch.zeros_like(moved).index_put((rest[:, None], rest), pair_weights(embeddings[rest], temperature))
    return (moved - left).abs().sum()


def searched(temperature: float, size: int, steps: int) -> float:
    """The furthest move found by gradient ascent, from others at right angles and the first example among them."""
    rng = torch.Generator().manual_seed(size)
    rows = torch.eye(2 * size, dtype=torch.float64) + 0.02 * torch.randn(2 * size, 2 * size, generator=rng)
    rows[:, 0] = 0.5
    rows[[0, size]] = torch.eye(2 * size, dtype=torch.float64)[0]
    rows.requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=0.05)
    furthest = 0.0
    for _ in range(steps):
        moved = weights_moved(rows, temperature)
        furthest = max(furthest, moved.item())
        optimizer.zero_grad()
        (-moved).backward()
        optimizer.step()
    return furthest


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_no_embeddings_that_are_searched_for_move_the_sum_further_than_the_bound(temperature: float) -> None:
    bound = largest_move(1.0, temperature)
    assert bound == pytest.approx({0.5: 16.778, 1.0: 7.437, 4.0: 4.568}[temperature], abs=1e-3)
    rng = torch.Generator().manual_seed(0)
    drawn = (torch.randn(2 * (2 + trial % 7), 1 + trial % 5, generator=rng) for trial in range(300))
    assert max(weights_moved(rows, temperature).item() for rows in drawn) <= bound
    furthest = max(searched(temperature, size, steps) for size, steps in ((2, 100), (3, 100), (8, 100), (32, 60)))
    assert furthest <= bound
    # the warmer, the tighter
    assert furthest / bound >= {0.5: 0.3, 1.0: 0.55, 4.0: 0.85}[temperature]


def test_the_bound_of_one_row_an_example_is_nearly_attained_too() -> None:
    """Where queries and keys are free, all others ask for one key, and its own query asks for theirs."""
    temperature, size = 1.0, 64

    def weights(similarities: Tensor) -> Tensor:
        return similarities.softmax(dim=1) - torch.eye(len(similarities))

    similarities = torch.full((size, size), -1 / temperature)
    similarities[:, 0] = similarities[0] = 1 / temperature
    similarities[0, 0] = -1 / temperature
    moved = weights(similarities)
    moved[1:, 1:] -= weights(similarities[1:, 1:])
    attained, bound = moved.abs().sum().item(), 2 * (1 + math.exp(2 / temperature))
    assert attained == pytest.approx(15.16, abs=0.1)
    assert 0.8 * bound < attained < bound


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_no_example_moves_the_sum_of_a_network_further_than_the_bound(temperature: float) -> None:
    clip, furthest = 1e-3, 0.0  # every gradient is clipped
    for trial in range(4):
        model, objective, batch = case(4, temperature, trial)
        whole = flat(gradients(model, objective, batch, clip))
        places = torch.arange(len(batch.places))
        rest = [flat(gradients(model, objective, batch.where(places != place), clip)) for place in places]
        furthest = max(furthest, *((whole - part).norm().item() for part in rest))
    assert clip < furthest <= largest_move(clip, temperature)


def test_the_order_of_examples_does_not_matter() -> None:
    model, objective, batch = case(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = batch_of(*(view[order] for view in batch.views))
    assert flat(gradients(model, objective, batch, 0.1, 7)) == pytest.approx(
        flat(gradients(model, objective, shuffled, 0.1, 7)), rel=1e-9, abs=1e-12
    )


def test_a_run_states_and_pays_for_the_noise_of_its_temperature(tmp_path: Path) -> None:
    statement = ran(tmp_path / "run", *LOGIT, "privacy.clip=0.5")["privacy"][0]
    assert (statement["unit"], statement["mechanism"], statement["num_releases"]) == ("example", "logit", 4)
    assert statement["noise_multiplier"] == 1
    assert statement["clip"] == pytest.approx(1 + math.exp(2))
    assert {charge["release"]["noise_std"] for charge in charges(tmp_path / "run")} == {statement["clip"]}
    steps = Release(1.0, 1.0, 0.5, 4)  # what a sum is of does not matter to the accountant
    assert statement["epsilon"] == pytest.approx(epsilon([steps], statement["delta"], accountant="rdp"))


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((*LOGIT, "objective.temperature=0.2"), "PRIV-LOGIT-TEMP", "objective.temperature=0.2: must be at least 0.5"),
        ((*NOISE, "objective=rotnet"), "PRIV-E-COUPLED", "must have simclr or cvrl, whose loss is of the similarities"),
        ((*NOISE, "objective=moco"), "PRIV-E-COUPLED", "of pairs, got MoCo; use privacy=example, cell or client"),
        ((*LOGIT, "model.norm=batch"), "PRIV-BN", "privacy=logit: backbone."),
        ((*LOGIT, "objective.norm=batch"), "PRIV-BN", "privacy=logit: projector.1"),
        ((*LOGIT, "augmentation.style=1"), "PRIV-E-COUPLED", "augmentation.style: must be null with privacy=logit"),
        ((*LOGIT, "client=moon"), "PRIV-STATE", "client=Moon"),
    ],
)
def test_what_the_bound_does_not_hold_for_is_refused(
    words: tuple[str, ...], code: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *words, f"run_dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line
    assert line.endswith(f"[{code}]")
