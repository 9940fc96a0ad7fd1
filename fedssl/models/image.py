"""Residual networks of images (He 2016, "Deep Residual Learning for Image Recognition"), without weights."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from fedssl.checks import at_least, one_of
from fedssl.models.encoder import Encoder
from fedssl.models.norms import group_norm

Norm = Literal["batch", "group"]
_TRUNK = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class ImageEncoder(Encoder):
    """An encoder that sees each frame of a clip as an image; an image's feature is that of its only frame.

    Pixels in [0, 1] are normalised here, so that training and evaluation cannot differ in it.

    Args:
        body: Maps images `[batch, channels, height, width]` to a feature map `[batch, feature_dim, height', width']`.
        feature_dim: Width of the pooled feature.
        mean: Subtracted from the pixels of each channel; one number serves all.
        std: The rest is divided by it.
    """

    def __init__(self, body: nn.Module, feature_dim: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(body, feature_dim)
        channels = _channels(body)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ValueError(f"{name} must be 1 or {channels} numbers, got {list(values)}")
        if min(std) <= 0:
            raise ValueError(f"std must be above 0, got {list(std)}")
        for name, values in (("mean", mean), ("std", std)):  # not persistent: a plain network has no such tensors
            self.register_buffer(name, torch.tensor(list(values)).view(1, -1, 1, 1), persistent=False)

    def normalized(self, clips: Tensor) -> Tensor:
        """Return the frames `[batch * frames, channels, height, width]` of clips, normalised."""
        images = clips.transpose(1, 2).flatten(0, 1)
        normalized: Tensor = (images - self.get_buffer("mean")) / self.get_buffer("std")
        return normalized

    def feature_map(self, clips: Tensor) -> Tensor:
        """Return the last map `[batch, feature_dim, frames, height', width']`."""
        maps: Tensor = self.body(self.normalized(clips))
        unfolded: Tensor = maps.unflatten(0, (len(clips), -1))
        return unfolded.transpose(1, 2)


def _channels(body: nn.Module) -> int:
    """Return the channels that the first convolution of a network takes."""
    return next(module.in_channels for module in body.modules() if isinstance(module, nn.Conv2d))


class _BasicBlock(resnet.BasicBlock):  # type: ignore[misc]  # torchvision has no types
    """A block that adds its input to a new tensor: hooks for per-example gradients forbid changing one in place."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(resnet.Bottleneck):  # type: ignore[misc]
    """As `_BasicBlock`, of three convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


def resnet18(
    in_channels: int = 3,
    stem: Literal["small", "imagenet"] = "small",
    norm: Norm = "batch",
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.25,),
) -> Encoder:
    """Return torchvision's ResNet-18 but its classifier, with the same names of tensors.

    Args:
        in_channels: Channels of an image.
        stem: "small" begins with a 3x3 convolution of stride 1 and no pooling, as is usual for 32 pixels; "imagenet"
            is torchvision's.
        norm: Batch or group normalisation; only the latter leaves examples independent of each other.
        mean: Subtracted from pixels in [0, 1]; one number, or one a channel.
        std: What pixels are then divided by.

    Returns:
        An encoder of 512 features.

    Raises:
        ValueError: If an argument is out of range.
    """
    return _residual(_BasicBlock, (2, 2, 2, 2), in_channels, stem, norm, (mean, std))


def resnet50(
    in_channels: int = 3,
    stem: Literal["small", "imagenet"] = "small",
    norm: Norm = "batch",
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.25,),
) -> Encoder:
    """Return torchvision's ResNet-50 but its classifier: 2048 features; arguments as of `resnet18`."""
    return _residual(_Bottleneck, (3, 4, 6, 3), in_channels, stem, norm, (mean, std))


def small_resnet(
    in_channels: int = 3,
    width: int = 16,
    stem_stride: int = 1,
    norm: Norm = "batch",
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.25,),
) -> Encoder:
    """Return a residual network of seven convolutions that a single CPU core can train.

    Args:
        in_channels: Channels of an image.
        width: Channels of the first stage; the two others have 2 and 4 times as many, each at half the height and
            width of the one before.
        stem_stride: Stride of the first convolution; 2 costs a quarter.
        norm: Batch or group normalisation.
        mean: Subtracted from pixels in [0, 1]; one number, or one a channel.
        std: What pixels are then divided by.

    Returns:
        An encoder of `4 * width` features.

    Raises:
        ValueError: If an argument is out of range.
    """
    at_least(1, in_channels=in_channels, width=width, stem_stride=stem_stride)
    make_norm = _norm(norm)
    stages: list[nn.Module] = []
    before = width
    for factor, stride in ((1, 1), (2, 2), (4, 2)):
        after = factor * width
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), make_norm(after))
        stages.append(_BasicBlock(before, after, stride, shortcut, norm_layer=make_norm))
        before = after
    first = nn.Conv2d(in_channels, width, 3, stem_stride, padding=1, bias=False)
    stem = nn.Sequential(first, make_norm(width), nn.ReLU())
    body = nn.Sequential(stem, *stages)
    _initialise(body)
    return ImageEncoder(body, 4 * width, mean, std)


def _residual(
    block: type[resnet.BasicBlock | resnet.Bottleneck],
    layers: Sequence[int],
    in_channels: int,
    stem: str,
    norm: Norm,
    normalisation: tuple[Sequence[float], Sequence[float]],
) -> Encoder:
    at_least(1, in_channels=in_channels)
    one_of(("small", "imagenet"), stem=stem)
    network = resnet.ResNet(block, list(layers), norm_layer=_norm(norm))
    if stem == "small":
        network.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    body = nn.Sequential(OrderedDict((name, getattr(network, name)) for name in _TRUNK))
    _initialise(body)
    return ImageEncoder(body, 512 * block.expansion, *normalisation)


def _norm(name: Norm) -> Callable[[int], nn.Module]:
    one_of(("batch", "group"), norm=name)
    return nn.BatchNorm2d if name == "batch" else group_norm


def _initialise(body: nn.Module) -> None:
    """Initialise convolutions as torchvision does, and let no activation change its input in place."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.ReLU):
            module.inplace = False
