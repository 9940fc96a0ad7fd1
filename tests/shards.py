"""Clients whose examples are points, and a model whose answers can be computed by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from quadratics import Plain
from test_resume import interrupt_after
from test_runs import TINY, result
from torch import nn

from fedssl.arrays import Arrays
from fedssl.data.arrays import ArrayDataset
from fedssl.models import bundle
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Objective, Population
from fedssl.training.loop import Examples
from fedssl.wire import TrainTask
from simulate import main

SURE, UNSURE = (1.0, 0.0, 0.0), (0.0, 0.1, 0.0)
"""Points that `reader` takes for class 0 with probability 0.9999, and for class 1 with probability 0.58."""


def shard(
    points: Sequence[Sequence[float]], labels: Sequence[int] | None = None, truth: Sequence[int] | None = None
) -> Examples:
    """Return examples of one pixel with three channels each."""
    pixels = np.round(255 * np.array(points)).astype(np.uint8)[:, None, None, None, :]
    number = len(points)
    dataset = ArrayDataset(np.zeros(number, np.int64), ("zero", "one", "two"), ("",) * number, pixels)
    known, true = (None if column is None else np.array(column) for column in (labels, truth))
    return Examples(dataset, np.arange(number), Plain(), known, true)


def reader(objective: Objective, sharpness: float = 10.0) -> nn.ModuleDict:
    """Return a model whose feature is the pixel and whose logits are `sharpness` times the feature."""
    model = bundle.build_bundle(lambda: Encoder(nn.Identity(), 3), objective, 0, Population(0, 3))
    with torch.no_grad():
        model["classifier"].weight.copy_(sharpness * torch.eye(3))
        model["classifier"].bias.zero_()
    return model


def asked(model: nn.ModuleDict, objective: Objective, **extras: Arrays) -> TrainTask:
    shared = [group for group in model if group not in objective.contract.private_groups]
    return TrainTask(1, 1, 0, bundle.arrays(model, shared), extras=extras)


def goes_on_to_the_same_bits(words: list[str], path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Check that a run of three rounds that was cut after the second ends as a whole one, and return its result."""
    arguments = [word for word in TINY if not word.startswith("objective")] + ["engine=local", "rounds=3", *words]
    assert main([*arguments, f"run_dir={path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert main([*arguments, f"run_dir={path / 'cut'}"]) == 3
    assert main([*arguments, f"run_dir={path / 'cut'}", "resume=auto"]) == 0
    whole, cut = result(path / "whole"), result(path / "cut")
    same = ("status", "failures", "model_sha256", "scores", "bytes_up", "bytes_down")
    assert [cut[key] for key in same] == [whole[key] for key in same]
    assert (whole["status"], whole["failures"]) == ("completed", 0)
    return whole
