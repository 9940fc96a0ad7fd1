"""Where features of images come from: a network that learns rotations on the spot, a run's encoder, or ImageNet's."""

import math
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.models.encoder import Encoder
from fedssl.models.image import resnet50, small_resnet
from fedssl.objectives.rotnet import NUM_ROTATIONS, rotations
from fedssl.privacy.unlearnable.cut import WHOLE, cut
from fedssl.privacy.unlearnable.noise import LEVELS
from fedssl.privacy.unlearnable.protector import Owned
from fedssl.seeding import generator, torch_stream

IMAGENET = "torchvision:resnet50"
_MEAN, _STD, _SIDE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
_OWN_SIDE, _WIDTH, _BATCH, _CHUNK, _RATE = 32, 16, 64, 256, 2e-3


class Surrogate(nn.Module):
    """A frozen encoder that resizes and normalises images by itself.

    Args:
        encoder: Normalises pixels in [0, 1]. No step changes it.
        size: Height and width of the images it sees, in pixels.
        channels: That it takes; a grey image shows its only one as often.
        pooled: Whether a feature is the mean of its map, or all of it.
    """

    def __init__(self, encoder: Encoder, size: tuple[int, int], channels: int, *, pooled: bool = True) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.size, self.channels, self.pooled = size, channels, pooled

    def forward(self, images: Tensor) -> Tensor:
        """Return the features `[n, dim]` of images `[n, channels, height, width]` in 0 to 1."""
        if images.shape[2:] != self.size:
            images = cut(images, WHOLE, *self.size)
        if images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        clips = images.unsqueeze(2)
        features: Tensor = self.encoder(clips) if self.pooled else self.encoder.feature_map(clips).flatten(1)
        return features


def make_surrogate(source: str | None, owned: Owned, epochs: int, noise: float) -> Surrogate:
    """Return the surrogate that is asked for, on the owner's device.

    Args:
        source: None trains a small network on the owner's own images, without labels; the directory of a finished
            run, or a file of an encoder in it, takes that encoder; "torchvision:resnet50" takes the weights of
            ImageNet that torchvision has, downloaded once.
        owned: The images.
        epochs: Of None; not read otherwise.
        noise: Of None: most that a pixel in 0 to 1 is changed while it trains; not read otherwise.

    Raises:
        ConfigError: It is not the directory of a finished run.
        ValueError: The weights cannot be had, or the encoder does not take the owner's images.
    """
    if source is None:
        return _of_rotations(owned, epochs, noise)
    surrogate = (_of_imagenet() if source == IMAGENET else _of_run(Path(source))).to(owned.device)
    try:
        with torch.no_grad():
            surrogate(to_pixels(owned.images[:1], owned.device))
    except (RuntimeError, ValueError) as error:
        shape = "x".join(str(length) for length in owned.images.shape[1:])
        raise ValueError(f"surrogate must take images of {shape}, got {source}") from error
    return surrogate


def features_of(surrogate: Surrogate, owned: Owned) -> NDArray[np.float32]:
    """Return the features `[num_images, dim]` of the owner's images."""
    with torch.no_grad():
        chunks = [
            surrogate(to_pixels(owned.images[start : start + _CHUNK], owned.device)).cpu()
            for start in range(0, len(owned.images), _CHUNK)
        ]
    features: NDArray[np.float32] = torch.cat(chunks).numpy()
    return features


def to_pixels(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return images `[n, height, width, channels]` uint8 as `[n, channels, height, width]` in 0 to 1."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous().float() / LEVELS


def _of_rotations(owned: Owned, epochs: int, noise: float) -> Surrogate:
    """Return a small network that learned by how much the owner's noisy images were turned (Gidaris 2018).

    A network that never saw noise is fooled by changes so faint that no other network notices them. And the mean of
    such a small network's map has lost where things are: clusters of whole maps are closer to what images show.
    """
    channels, size = owned.images.shape[3], (_OWN_SIDE, _OWN_SIDE)
    with torch_stream(owned.seed, "unlearnable", "surrogate"):
        encoder = small_resnet(channels, _WIDTH, stem_stride=2).to(owned.device).train()
        head = nn.Linear(encoder.feature_dim, NUM_ROTATIONS).to(owned.device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=_RATE)
    rng = generator(owned.seed, "unlearnable", "surrogate", "order")
    for epoch in range(epochs):
        for places in np.array_split(rng.permutation(len(owned.images)), math.ceil(len(owned.images) / _BATCH)):
            images = to_pixels(owned.images[places], owned.device)
            changes = torch.from_numpy(rng.uniform(-noise, noise, images.shape)).to(images)
            rotated, turns = rotations(cut((images + changes).clamp(0, 1), WHOLE, *size).unsqueeze(2))
            loss = F.cross_entropy(head(encoder(rotated)), turns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        owned.say("surrogate", epoch + 1, epochs)
    return Surrogate(encoder, size, channels, pooled=False)


def _of_run(path: Path) -> Surrogate:
    """Return the encoder of a finished run, which sees images of the size that the run showed it."""
    from fedssl.config import build
    from fedssl.evaluation.transfer import fill, finished_configuration
    from fedssl.report.rundir import ENCODER

    run_dir, path = (path.parent, path) if path.suffix == ".safetensors" else (path, path / ENCODER)
    config = finished_configuration(run_dir, ())
    with torch_stream(config.seed, "unlearnable"):
        encoder: Encoder = build(config, "model")
    fill(encoder, path)
    shown, channels = config.components["augmentation"], config.components["model"].get("in_channels", 1)
    return Surrogate(encoder, (shown["height"], shown["width"]), channels)


def _of_imagenet() -> Surrogate:
    """Return torchvision's ResNet-50 with its first weights of ImageNet, which the paper took."""
    from torchvision.models import ResNet50_Weights

    with torch_stream(0, "unlearnable"):
        encoder = resnet50(stem="imagenet", mean=_MEAN, std=_STD)
    try:
        weights = ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"surrogate must have weights that can be downloaded ({reason}), got {IMAGENET}") from error
    encoder.body.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("fc.")})
    return Surrogate(encoder, (_SIDE, _SIDE), 3)
