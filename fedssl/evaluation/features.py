"""What a network makes of the clips of each video: one feature, by the protocol of Xu 2019, or more."""

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
from fedssl.data.clips import Frames, dense, span, uniform
from fedssl.data.dataset import Dataset
from fedssl.models.encoder import Encoder
from fedssl.training.augment import resize


@dataclass(frozen=True, slots=True)
class ClipProtocol:
    """What a video's feature is made of.

    Args:
        num_clips: Clips of a video, evenly spread; their features are averaged. None: as many as fit, one after
            another.
        clip_frames: Frames of a clip.
        height: Height the encoder sees, in pixels.
        width: Width the encoder sees, in pixels.
        pool: "avg" takes the mean of the feature map; "max" its maxima in 2 by 2 quarters, four times as wide.
        clip_stride: Frames of the video from one frame of a clip to the next.

    Raises:
        ValueError: If an argument is out of range.
    """

    num_clips: int | None
    clip_frames: int
    height: int
    width: int
    pool: Literal["avg", "max"]
    clip_stride: int = 1

    def __post_init__(self) -> None:
        at_least(1, num_clips=self.num_clips, clip_frames=self.clip_frames, clip_stride=self.clip_stride)
        at_least(1, height=self.height, width=self.width)
        one_of(("avg", "max"), pool=self.pool)

    def frames(self, num_frames: int) -> Frames:
        """Return the frames `[clips, clip_frames]` of the clips of a video."""
        if self.num_clips is None:
            return dense(num_frames, self.clip_frames, self.clip_stride, span(self.clip_frames, self.clip_stride))
        return uniform(num_frames, self.num_clips, self.clip_frames, self.clip_stride)


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
        merge: Makes of the outputs `[1, clips, d]` for a video what is wanted of it.

    Returns:
        `[num_videos, ...]` float32.

    Raises:
        ValueError: There is no video or `batch_size` is below 1.
        FloatingPointError: A number is not finite.
    """
    if len(indices) < 1:
        raise ValueError("dataset must have at least 1 example, got 0")
    at_least(1, batch_size=batch_size)
    videos_at_once = max(1, batch_size // (protocol.num_clips or batch_size))
    merged = []
    with evaluating(network), torch.no_grad():
        for first in range(0, len(indices), videos_at_once):
            videos = indices[first : first + videos_at_once]
            clips = [_read_clips(dataset.read(int(index)), protocol, device) for index in videos]
            outputs = torch.cat([network(part) for part in torch.split(torch.cat(clips), batch_size)]).float()
            each = outputs.split([len(own) for own in clips])
            merged += [merge(own[None]).cpu().numpy() for own in each]
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
    """Return the clips `[clips, channels, clip_frames, height, width]` of one video, float32 in [0, 1]."""
    return resize(to_clips(video, protocol.frames(len(video)), device), protocol.height, protocol.width)


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
