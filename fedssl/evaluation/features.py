"""What a network makes of the evenly spread clips of each video: one feature, by the protocol of Xu 2019, or more."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least, one_of
from fedssl.data.clips import uniform
from fedssl.data.dataset import Dataset
from fedssl.models.encoder import Encoder
from fedssl.training.augment import resize


@dataclass(frozen=True, slots=True)
class ClipProtocol:
    """What a video's feature is made of.

    Args:
        num_clips: Clips of a video, evenly spread; their features are averaged.
        clip_frames: Frames of a clip.
        height: Height the encoder sees, in pixels.
        width: Width the encoder sees, in pixels.
        pool: "avg" takes the mean of the feature map; "max" its maxima in 2 by 2 quarters, four times as wide.

    Raises:
        ValueError: If an argument is out of range.
    """

    num_clips: int
    clip_frames: int
    height: int
    width: int
    pool: Literal["avg", "max"]

    def __post_init__(self) -> None:
        at_least(1, num_clips=self.num_clips, clip_frames=self.clip_frames, height=self.height, width=self.width)
        one_of(("avg", "max"), pool=self.pool)


class Pooled(nn.Module):
    """An encoder of clips, and how its feature map is pooled.

    Args:
        encoder: Held, not copied.
        pool: As of `ClipProtocol`.
    """

    def __init__(self, encoder: Encoder, pool: Literal["avg", "max"]) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pool

    def forward(self, clips: Tensor) -> Tensor:
        """Return the pooled features `[n, d]`."""
        if self.pool == "avg":
            pooled: Tensor = self.encoder(clips)
            return pooled
        return F.adaptive_max_pool3d(self.encoder.feature_map(clips), (1, 2, 2)).flatten(1)


def video_features(
    encoder: Encoder,
    dataset: Dataset,
    protocol: ClipProtocol,
    batch_size: int,
    device: torch.device,
    indices: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return features `[num_videos, d]`, each the mean over a video's clips; arguments as of `encode_videos`."""
    wanted = np.arange(len(dataset)) if indices is None else indices
    return encode_videos(Pooled(encoder, protocol.pool), dataset, wanted, protocol, batch_size, device, mean_feature)


def encode_videos(
    network: nn.Module,
    dataset: Dataset,
    indices: NDArray[np.int64],
    protocol: ClipProtocol,
    batch_size: int,
    device: torch.device,
    merge: Callable[[Tensor], Tensor],
) -> NDArray[np.float32]:
    """Return what a network makes of videos, in the order of `indices`.

    Args:
        network: Maps clips to `[n, d]`; lies on `device`, used in evaluation mode, its modes are restored.
        dataset: Videos of at least one frame, of any sizes.
        indices: `[num_videos]` the videos wanted.
        protocol: The clips of a video.
        batch_size: Clips that the network takes at once; it changes the memory used, not the result.
        device: Where clips are resized and encoded.
        merge: Makes of the outputs `[n, num_clips, d]` for n videos what is wanted of each.

    Returns:
        `[num_videos, ...]` float32.

    Raises:
        ValueError: There is no video or `batch_size` is below 1.
        FloatingPointError: A number is not finite.
    """
    if len(indices) < 1:
        raise ValueError("dataset must have at least 1 example, got 0")
    at_least(1, batch_size=batch_size)
    videos_at_once = max(1, batch_size // protocol.num_clips)
    merged = []
    with evaluating(network), torch.no_grad():
        for first in range(0, len(indices), videos_at_once):
            videos = indices[first : first + videos_at_once]
            clips = torch.cat([_read_clips(dataset.read(int(index)), protocol, device) for index in videos])
            outputs = torch.cat([network(part) for part in torch.split(clips, batch_size)])
            merged.append(merge(outputs.float().view(len(videos), protocol.num_clips, -1)).cpu().numpy())
    return joined(merged)


def joined(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the features of all batches.

    Raises:
        FloatingPointError: A feature is not a finite number.
    """
    features: NDArray[np.float32] = np.concatenate(parts).astype(np.float32, copy=False)
    if not np.isfinite(features).all():
        raise FloatingPointError("the features of the encoder are not all finite numbers")
    return features


def mean_feature(features: Tensor) -> Tensor:
    """Return the mean `[n, d]` over clips of features `[n, num_clips, d]`."""
    return features.mean(dim=1)


def mean_probability(logits: Tensor) -> Tensor:
    """Return the mean `[n, num_classes]` of the clips' softmax; logits `[n, num_clips, num_classes]`.

    The usual answer for a video (Feichtenhofer 2019, "SlowFast Networks for Video Recognition"), of whole frames.
    """
    return logits.softmax(dim=-1).mean(dim=1)


def to_clips(video: NDArray[np.uint8], frames: NDArray[np.int64], device: torch.device) -> Tensor:
    """Return the clips of one video that show `frames` `[n, t]`: `[n, channels, t, height, width]` uint8."""
    return torch.from_numpy(video[frames]).to(device).permute(0, 4, 1, 2, 3)


def _read_clips(video: NDArray[np.uint8], protocol: ClipProtocol, device: torch.device) -> Tensor:
    """Return the clips `[num_clips, channels, clip_frames, height, width]` of one video, float32 in [0, 1]."""
    frames = uniform(len(video), protocol.num_clips, protocol.clip_frames)
    return resize(to_clips(video, frames, device), protocol.height, protocol.width)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode inside the block, and every module back into its own after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
