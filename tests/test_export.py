"""An exported encoder is torchvision's: the printed lines load it and give its features."""

from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedssl.compose import load
from fedssl.config import build
from fedssl.export import EXPORTED, main
from fedssl.models import bundle
from fedssl.models.encoder import Encoder
from fedssl.objectives.cvrl import Cvrl
from fedssl.report.rundir import CONFIG, ENCODER, RunDirectory


def write_run(path: Path, words: list[str], views: Tensor) -> Encoder:
    """Write a run directory with an encoder that has seen `views`, so that its statistics are its own; return it."""
    config = load(words)
    model = bundle.build_bundle(lambda: build(config, "model"), Cvrl(), seed=0)
    encoder = cast(Encoder, model["backbone"])
    with torch.no_grad():
        encoder(views)
    rundir = RunDirectory.create(path, config.text)
    rundir.write_model(bundle.arrays(model, None))
    rundir.close()
    return encoder.eval()


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


IMAGES, GREY = drawn(2, 3, 1, 16, 16), drawn(2, 1, 1, 16, 16)
CLIPS, GREY_CLIPS = drawn(2, 3, 4, 16, 16), drawn(2, 1, 4, 16, 16)
RGB = ["model.in_channels=3", "model.mean=[0.5,0.4,0.3]", "model.std=[0.2,0.3,0.4]"]
RESNET = ["model=resnet18", *RGB]
RUNS = {
    "small stem": (RESNET, IMAGES),
    "small stem, group": ([*RESNET, "model.norm=group"], IMAGES),
    "small stem, one channel": (["model=resnet18"], GREY),
    "imagenet stem": ([*RESNET, "model.stem=imagenet"], IMAGES),
    "imagenet stem, group, one channel": (["model=resnet18", "model.stem=imagenet", "model.norm=group"], GREY),
    "resnet50, group": (["model=resnet50", *RGB, "model.norm=group"], IMAGES),
    "vit_tiny": (["model=vit_tiny", *RGB, "model.image_size=16", "model.depth=2"], IMAGES),
    "vit_tiny, one channel": (["model=vit_tiny", "model.image_size=16", "model.depth=1"], GREY),
    "r3d_18, one channel": (["model=r3d_18"], GREY_CLIPS),
    "r2plus1d_18, one channel": (["model=r2plus1d_18"], GREY_CLIPS),
    "mc3_18": (["model=mc3_18", "model.in_channels=3"], CLIPS),
    "mc3_18, one channel": (["model=mc3_18"], GREY_CLIPS),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_printed_lines_load_it_into_plain_torchvision_and_give_its_features(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, views = RUNS[name]
    encoder = write_run(tmp_path, words, views)
    assert main([str(tmp_path)]) == 0
    scope = {"clips": views, "images": views[:, :, 0]}
    with torch.no_grad():
        exec(capsys.readouterr().out, scope)
        torch.testing.assert_close(scope["features"], encoder(views), rtol=1e-4, atol=1e-5)
    assert not any(key.startswith("body.") for key in load_file(tmp_path / EXPORTED))


def test_the_file_can_be_named_and_the_runs_own_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, RESNET, IMAGES)
    before = (tmp_path / ENCODER).read_bytes()
    out = tmp_path / "mine.safetensors"
    assert main([str(tmp_path), str(out)]) == 0
    assert repr(str(out)) in capsys.readouterr().out
    assert main([str(tmp_path), str(tmp_path / ENCODER)]) == 2
    assert main([str(tmp_path), str(tmp_path / "nowhere" / "mine.safetensors")]) == 2
    assert (tmp_path / ENCODER).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, ENCODER, out.name}


def refusal(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([str(path)]) == 2
    assert not (path / EXPORTED).exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("model", ["small_resnet", "small3d", "small3d_differences"])
def test_an_encoder_that_torchvision_does_not_have_is_refused_with_those_it_has(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDirectory.create(tmp_path, load([f"model={model}"]).text).close()
    line = refusal(tmp_path, capsys)
    assert line.endswith("only resnet18, resnet50, vit_tiny, r3d_18, r2plus1d_18, mc3_18 can be exported")


def test_what_is_no_run_or_no_whole_encoder_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run, config.yaml is missing" in refusal(tmp_path, capsys)
    (tmp_path / CONFIG).write_text("rounds: [")
    assert "is not the configuration of a run" in refusal(tmp_path, capsys)
    (tmp_path / CONFIG).write_text(load(RESNET).text.replace("in_channels", "channels_in"))
    assert "config.yaml: got an unexpected keyword argument 'channels_in'" in refusal(tmp_path, capsys)
    (tmp_path / CONFIG).write_text(load(RESNET).text)
    assert "encoder.safetensors: is missing, the run did not end" in refusal(tmp_path, capsys)
    (tmp_path / ENCODER).write_bytes(b"nothing")
    assert "encoder.safetensors: cannot be read" in refusal(tmp_path, capsys)
    (tmp_path / CONFIG).unlink()
    (tmp_path / ENCODER).unlink()
    encoder = write_run(tmp_path, RESNET, IMAGES)
    shared = {name: tensor.numpy() for name, tensor in encoder.state_dict().items() if "bn1" not in name}
    RunDirectory(tmp_path).write_tensors(shared, ENCODER)
    assert "body.bn1.bias is missing; with batch_norm=local, clients keep it" in refusal(tmp_path, capsys)
    wrong = {name: tensor.numpy()[..., :1] for name, tensor in encoder.state_dict().items() if tensor.ndim}
    wrong |= {name: tensor.numpy() for name, tensor in encoder.state_dict().items() if not tensor.ndim}
    RunDirectory(tmp_path).write_tensors(wrong, ENCODER)
    assert "does not fit the encoder of config.yaml" in refusal(tmp_path, capsys)
