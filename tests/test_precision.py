"""Steps in bfloat16: near those in float32, on devices that can be relied on, and float32 in all that is kept."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from test_runs import result
from torch import Tensor, nn

from fedssl.compose import load
from fedssl.models import bundle
from fedssl.training.precision import computing, in_bfloat16, laid_out
from fedssl.workspace import open_workspace
from simulate import main

VIDEOS = (
    "data.num_train=16", "data.num_test=4", "data.num_classes=2", "partition.num_clients=2", "cohort=null",
    "model.width=4", "client.epochs=1", "client.batch_size=8", "rounds=1", "evaluation=none", "engine=local",
)  # fmt: skip
IMAGES = ("experiment=quickstart_images", "data.test_fraction=0.95", "model.width=4", "partition.num_clients=2")


CPU = torch.device("cpu")
FINE = torch.tensor([[1 + 2**-9]])  # more bits than bfloat16 has


class Doubled(nn.Module):
    """A product inside another module, and one of float32 beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.inner.weight)

    def forward(self, rows: Tensor) -> tuple[Tensor, torch.dtype]:
        answer = self.inner(rows)
        return answer, answer.dtype


def test_modules_multiply_in_bfloat16_and_answer_in_float32() -> None:
    model = Doubled()
    with in_bfloat16(model, CPU):
        answer, inside = model(FINE)
        assert (inside, answer.dtype) == (torch.bfloat16, torch.float32)
        assert answer.item() == 1
        assert (FINE @ torch.ones(1, 1)).item() == FINE.item()  # what is no module's stays exact
    assert model(FINE)[0].item() == FINE.item()
    assert not model._forward_hooks


def test_a_module_that_fails_leaves_no_bfloat16_behind() -> None:
    model = Doubled()
    with in_bfloat16(model, CPU):
        with pytest.raises(RuntimeError):
            model(torch.ones(1, 2))
        assert not torch.is_autocast_enabled("cpu")
        assert model(FINE)[1] == torch.bfloat16


def test_a_cpu_is_refused_because_its_gradients_in_bfloat16_cannot_be_relied_on() -> None:
    wanted = r"^precision must be float32 on the CPU, choose a GPU by engine\.num_gpus_per_client, got bf16$"
    with pytest.raises(ValueError, match=wanted), computing(Doubled(), "bf16", CPU):
        pass
    with computing(model := Doubled(), "float32", CPU):
        assert model(FINE)[0].item() == FINE.item()


def test_the_channels_of_a_view_come_last_and_its_numbers_stay() -> None:
    batch = open_workspace(load([*VIDEOS, "data.channels=3"])).some(0, 4)
    assert laid_out(batch, "float32") is batch
    for view, own in zip(laid_out(batch, "bf16").views, batch.views, strict=True):
        assert view.equal(own)
        assert view.is_contiguous(memory_format=torch.channels_last_3d)
        assert not own.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_client_trains_in_the_precision_of_its_procedure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []

    def record(model: nn.Module, precision: str, device: torch.device) -> ExitStack:
        seen.append(precision)
        return ExitStack()

    monkeypatch.setattr("fedssl.training.loop.computing", record)
    monkeypatch.setattr("fedssl.prepare.check_precision", lambda precision, device: None)
    assert main([*VIDEOS, "client.precision=bf16", f"run_dir={tmp_path / 'run'}"]) == 0
    assert seen == ["bf16"] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_in_bfloat16_is_another_one_of_the_same_bits_each_time(tmp_path: Path) -> None:
    hashes = []
    for name, precision in (("one", "bf16"), ("again", "bf16"), ("other", "float32")):
        words = [*VIDEOS, "engine.num_gpus_per_client=1", f"client.precision={precision}"]
        assert main([*words, f"run_dir={tmp_path / name}"]) == 0
        hashes.append(result(tmp_path / name)["model_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]
    tensors = load_file(tmp_path / "one" / "encoder.safetensors")
    assert all(tensor.dtype == np.float32 for name, tensor in tensors.items() if "num_batches" not in name)


@pytest.mark.parametrize("objective", ["vcop", "speed", "ctp", "cvrl"])
def test_objectives_of_clips_come_to_nearly_the_same_loss(objective: str) -> None:
    _nearly_the_same([*VIDEOS, f"objective={objective}", *(["objective.dropout=0"] if objective == "speed" else [])])


@pytest.mark.parametrize(
    "objective",
    [
        *("simclr", "byol", "barlow_twins", "vicreg", "mae", "gmml", "supervised", "fixmatch", "align_uniform"),
        *("entropy_reconstruction", "mv_mr", "e2mc", "all4one", "nnclr", "dino", "twinsight"),
    ],
)
def test_objectives_of_images_come_to_nearly_the_same_loss(objective: str) -> None:
    _nearly_the_same([*IMAGES, f"objective={objective}"])


def _nearly_the_same(words: list[str]) -> None:
    workspace = open_workspace(load(words))
    losses = []
    for wanted in (False, True):
        bundle.load(workspace.model, workspace.initial)
        workspace.model.train()
        workspace.objective.begin_round(workspace.model, first=True)
        with in_bfloat16(workspace.model, CPU) if wanted else ExitStack():  # losses alone: gradients are for GPUs
            loss = workspace.objective.step(workspace.model, workspace.some(0, 8)).loss
        assert loss.dtype == torch.float32
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_an_unknown_precision_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*VIDEOS, "client.precision=fp16", f"run_dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err == "client.precision=fp16: must be one of float32, bf16\n"
    assert main([*VIDEOS, "client.precision=bf16", f"run_dir={tmp_path / 'run'}"]) == 2
    wanted = "client.precision=bf16: must be float32 on the CPU, choose a GPU by engine.num_gpus_per_client\n"
    assert capsys.readouterr().err == wanted
    assert not (tmp_path / "run").exists()
