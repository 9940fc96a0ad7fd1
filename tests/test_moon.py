"""MOON: the contrast of models in closed form, and what a client keeps for it."""

import json
from pathlib import Path

import numpy as np
import pytest
import test_resume
import torch
from batches import batch_of
from quadratics import answer, sgd, task_of
from test_runs import TINY, result
from torch import nn
from torch.nn import functional as F

from clients.local_training import LocalTraining
from clients.moon import PREVIOUS, Moon, model_contrast
from fedssl.memory import Memory
from fedssl.models import bundle
from fedssl.objectives.objective import Batch, Objective, Population, Step
from fedssl.privacy.contract import PrivacyContract
from simulate import main


class Mean(Objective):
    """The mean square of the projected views."""

    contract = PrivacyContract("per_example")

    def build(self, encoder: nn.Module, population: Population) -> dict[str, nn.Module]:
        return {}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        return Step((model["projector"](model["backbone"](batch.views[0])) - 1).square().mean(), {})


def network(seed: int = 0) -> nn.ModuleDict:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(1, 5), nn.BatchNorm1d(5), nn.ReLU())
        return nn.ModuleDict({"backbone": backbone, "projector": nn.Linear(5, 3), "predictor": nn.Linear(3, 3)})


def rows(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_contrast_of_equal_right_and_opposite_features(temperature: float) -> None:
    x, y = torch.eye(4, dtype=torch.float64)[:2].repeat_interleave(3, 0).chunk(2)
    cases = [
        (x, x, x, np.log(2)),
        (x, x, y, np.log(1 + np.exp(-1 / temperature))),
        (x, y, x, np.log(1 + np.exp(1 / temperature))),
        (x, x, -x, np.log(1 + np.exp(-2 / temperature))),
        (x, 5 * x, 0.1 * y, np.log(1 + np.exp(-1 / temperature))),
    ]
    for features, received, previous, expected in cases:
        assert model_contrast(features, received, previous, temperature).item() == pytest.approx(expected, abs=1e-9)


def test_the_contrast_is_that_of_a_loop_over_examples() -> None:
    features, received, previous = rows(0), rows(1), rows(2)
    terms = []
    for z, g, p in zip(features, received, previous, strict=True):
        near, far = (torch.exp(z @ other / z.norm() / other.norm() / 0.5) for other in (g, p))
        terms.append(-torch.log(near / (near + far)))
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(model_contrast(features, received, previous, 0.5), expected, atol=1e-9, rtol=0)


def test_the_contrast_has_the_gradient_it_should_and_stays_finite() -> None:
    features = rows(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: model_contrast(z, rows(1), rows(2), 0.5), features)
    for special in (torch.zeros(1, 4), torch.ones(1, 4)):
        z = special.clone().requires_grad_()
        model_contrast(z, special, special, 0.5).backward()
        assert torch.isfinite(z.grad).all()
    assert model_contrast(*(rows(i, torch.bfloat16) for i in range(3)), 0.5).dtype == torch.float32


def test_the_first_participation_is_local_training_and_keeps_the_trained_backbone_and_projector() -> None:
    arrays = bundle.arrays(network(), None)
    plain, _ = answer(LocalTraining(sgd(0.1)), Mean(), network(), task_of(arrays))
    first, memory = answer(Moon(sgd(0.1), mu=5.0), Mean(), network(), task_of(arrays))
    assert all(np.array_equal(first.arrays[name], plain.arrays[name]) for name in arrays)
    assert "penalty" not in first.metrics
    kept = memory.extras[PREVIOUS]
    assert set(kept) == {name for name in arrays if not name.startswith("predictor")}
    assert all(np.array_equal(kept[name], first.arrays[name]) for name in kept)


def test_a_client_that_comes_back_to_the_model_it_sent_feels_no_pull() -> None:
    arrays = bundle.arrays(network(), None)
    memory = Memory({}, {PREVIOUS: bundle.arrays(network(), ["backbone", "projector"])})
    plain, _ = answer(LocalTraining(sgd(0.1)), Mean(), network(), task_of(arrays))
    pulled, _ = answer(Moon(sgd(0.1), mu=5.0), Mean(), network(), task_of(arrays), memory)
    assert pulled.metrics["penalty"] == pytest.approx(5 * np.log(2))
    trained = [name for name in arrays if "running" not in name and "batches" not in name]
    assert all(np.allclose(pulled.arrays[name], plain.arrays[name], atol=1e-6) for name in trained)


def test_the_term_compares_projected_first_views_with_both_models_in_evaluation() -> None:
    model, other = network(0), network(1)
    memory = Memory({}, {PREVIOUS: bundle.arrays(other, ["backbone", "projector"])})
    rule = Moon(sgd(0.1), mu=3.0, temperature=0.5).rule(model, Mean(), memory, task_of({}))
    views = torch.rand(8, 1, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model["projector"].weight.add_(0.5)  # as a step would: the rule compares with what came before it
    before = bundle.arrays(model, None)
    penalty = rule.penalty(model.train(), batch_of(views, torch.rand(8, 1, 1, 1, 1)))
    received, previous = network(0).eval(), other.eval()
    features = [one["projector"](one["backbone"](views)) for one in (received, previous)]
    bundle.load(model, before)
    own = model["projector"](model["backbone"](views))
    logits = torch.stack([F.cosine_similarity(own, z) for z in features], 1) / 0.5
    expected = 3 * F.cross_entropy(logits, torch.zeros(8, dtype=torch.int64))
    torch.testing.assert_close(penalty, expected)
    penalty.backward()
    assert model["projector"].weight.grad.abs().sum() > 0


def test_a_model_without_a_projector_is_compared_by_its_backbone() -> None:
    model = nn.ModuleDict({"backbone": nn.Flatten(), "head": nn.Linear(1, 1)})
    rule = Moon(sgd(0.1), mu=1.0).rule(model, Mean(), Memory({}, {PREVIOUS: {}}), task_of({}))
    assert rule.penalty(model, batch_of(torch.rand(4, 1, 1, 1, 1))).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("setting", "text"), [({"mu": -1.0}, "mu must be"), ({"temperature": 0.0}, "temperature must")]
)
def test_arguments_out_of_range_are_refused(setting: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Moon(sgd(0.1), **setting)


def test_a_whole_run_has_the_term_from_the_second_participation_on(tmp_path: Path) -> None:
    run = [*TINY, "engine=local", "objective=cvrl", "strategy=fedavg", "client=moon", "cohort=4"]
    assert main([*run, "client.mu=0.5", f"run_dir={tmp_path / 'run'}"]) == 0
    assert result(tmp_path / "run")["failures"] == 0
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert "penalty" not in rounds[0]["metrics"]
    assert 0 < rounds[1]["metrics"]["penalty"] < 0.5 * np.log(1 + np.exp(2 / 0.5))


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["client=moon", "strategy=fedavg", "objective=cvrl"]
    monkeypatch.setitem(test_resume.STRATEGIES, "moon", words)
    test_resume.test_an_interrupted_run_goes_on_to_the_same_bits("moon", 3, tmp_path, monkeypatch)
