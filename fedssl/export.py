"""Write a run's encoder so that plain torchvision loads it: `python -m fedssl.export RUN_DIR [OUT.safetensors]`."""

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fedssl.errors import ConfigError
from fedssl.models import image, video, vit
from fedssl.models.encoder import Encoder
from fedssl.report.rundir import CONFIG, ENCODER, RunDirectory

EXPORTED = "encoder_torchvision.safetensors"
WRITTEN, BAD_INPUT = 0, 2
_RGB = 3
_STEM = (64, (3, 7, 7), (1, 3, 3))  # width, kernel, padding
_STEMS = {"r3d_18": _STEM, "mc3_18": _STEM, "r2plus1d_18": (45, (1, 7, 7), (0, 3, 3))}

Settings = Mapping[str, Any]
Lines = list[str]


def _resnet(name: str, settings: Settings, load: str) -> Lines:
    """Return the lines that make torchvision's network of images with its classifier off, load it and use it."""
    channels, norm = settings["in_channels"], ""
    if settings["norm"] == "group":
        norm = "norm_layer=lambda channels: torch.nn.GroupNorm(8, channels)"
    lines = [f"network = torchvision.models.{name}({norm})", "network.fc = torch.nn.Identity()"]
    if settings["stem"] == "small":
        lines.append(f"network.conv1 = torch.nn.Conv2d({channels}, 64, 3, padding=1, bias=False)")
        lines.append("network.maxpool = torch.nn.Identity()")
    elif channels != _RGB:
        lines.append(f"network.conv1 = torch.nn.Conv2d({channels}, 64, 7, stride=2, padding=3, bias=False)")
    use = f"features = network.eval()((images - mean) / std)  # images [n, {channels}, height, width] in [0, 1]"
    return [*lines, load, _normalisation(settings), use]


def _video(name: str, settings: Settings, load: str) -> Lines:
    """As `_resnet`, for networks of clips, whose pixels are not normalised."""
    channels = settings["in_channels"]
    lines = [f"network = torchvision.models.video.{name}()", "network.fc = torch.nn.Identity()"]
    if channels != _RGB:
        width, kernel, padding = _STEMS[name]
        options = f"{kernel}, stride=(1, 2, 2), padding={padding}, bias=False"
        lines.append(f"network.stem[0] = torch.nn.Conv3d({channels}, {width}, {options})")
    return [*lines, load, f"features = network.eval()(clips)  # [n, {channels}, frames, height, width] in [0, 1]"]


def _vit(name: str, settings: Settings, load: str) -> Lines:
    """As `_resnet`, for the transformer, whose feature is the mean of its patches and not its class token."""
    size, patch, depth, channels = (settings[key] for key in ("image_size", "patch_size", "depth", "in_channels"))
    lines = [
        f"network = torchvision.models.VisionTransformer({size}, {patch}, {depth}, 3, 192, 768)",
        "network.heads = torch.nn.Identity()",
    ]
    if channels != _RGB:
        lines.append(f"network.conv_proj = torch.nn.Conv2d({channels}, 192, {patch}, stride={patch})")
    shape = f"[n, {channels}, {size}, {size}]"
    return [
        *lines,
        load,
        _normalisation(settings),
        f"patches = network.eval()._process_input((images - mean) / std)  # images {shape} in [0, 1]",
        "tokens = torch.cat((network.class_token.expand(len(patches), -1, -1), patches), dim=1)",
        "features = network.encoder(tokens)[:, 1:].mean(dim=1)",
    ]


_MAKERS: Mapping[str, tuple[Callable[..., Encoder], Callable[[str, Settings, str], Lines]]] = {
    "resnet18": (image.resnet18, _resnet),
    "resnet50": (image.resnet50, _resnet),
    "vit_tiny": (vit.vit_tiny, _vit),
    "r3d_18": (video.r3d_18, _video),
    "r2plus1d_18": (video.r2plus1d_18, _video),
    "mc3_18": (video.mc3_18, _video),
}


def _normalisation(settings: Settings) -> str:
    """Return the line that makes the numbers by which the encoder normalises images."""
    values = ", ".join(str(list(settings[name])) for name in ("mean", "std"))
    return f"mean, std = (torch.tensor(values).view(-1, 1, 1) for values in ({values}))"


def export(run_dir: Path, out: Path | None = None) -> str:
    """Write the encoder of the run in `run_dir`, with the names of torchvision's own network.

    Args:
        run_dir: A run that ended.
        out: The file; None is encoder_torchvision.safetensors in `run_dir`.

    Returns:
        The lines of Python that load it into plain torchvision and turn pixels in [0, 1] into features.

    Raises:
        ConfigError: There is no such run, its encoder is none of torchvision's, or is not whole.
    """
    out = run_dir / EXPORTED if out is None else out
    if out.resolve() == (run_dir / ENCODER).resolve() or not out.parent.is_dir():
        raise ConfigError(f"{out}: must be a new file in a folder that exists")
    name, settings = _model(run_dir)
    make, lines = _MAKERS[name]
    encoder = make(**settings)
    _fill(encoder, run_dir / ENCODER)
    body = {key: tensor.numpy() for key, tensor in encoder.body.state_dict().items()}
    RunDirectory(out.parent).write_tensors(body, out.name)
    load = f"network.load_state_dict(safetensors.torch.load_file({str(out)!r}))"
    return "\n".join(["import safetensors.torch, torch, torchvision", *lines(name, settings, load)])


def _model(run_dir: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of the encoder and every argument of its maker, those it was not given too."""
    if not (run_dir / CONFIG).is_file():
        raise ConfigError(f"{run_dir}: holds no run, {CONFIG} is missing")
    try:
        spec = cast(Any, OmegaConf.to_container(OmegaConf.load(run_dir / CONFIG)))["model"]
        target = str(spec.pop("_target_"))
    except (YAMLError, OmegaConfBaseException, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{run_dir / CONFIG}: is not the configuration of a run") from error
    name = target.rpartition(".")[2]
    if name not in _MAKERS or target != f"{_MAKERS[name][0].__module__}.{name}":
        raise ConfigError(f"{run_dir}: its encoder is {target}, only {', '.join(_MAKERS)} can be exported")
    try:
        settings = inspect.signature(_MAKERS[name][0]).bind(**spec)
    except TypeError as error:
        raise ConfigError(f"{run_dir / CONFIG}: {error}") from error
    settings.apply_defaults()
    return name, settings.arguments


def _fill(encoder: Encoder, path: Path) -> None:
    """Load the file at `path` into `encoder`, every tensor of it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ConfigError(f"{path}: is missing, the run did not end")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read") from error
    if missing := sorted(set(encoder.state_dict()) - set(tensors)):
        raise ConfigError(f"{path}: {missing[0]} is missing; with batch_norm=local, clients keep it")
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{path}: does not fit the encoder of {CONFIG}") from error


def main(arguments: list[str]) -> int:
    """Export and return the exit status: 0 written, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m fedssl.export", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of a run that ended")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", nargs="?", help=f"default: RUN_DIR/{EXPORTED}")
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(export(options.run_dir, options.out) + "\n")
    except ConfigError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return BAD_INPUT
    return WRITTEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
