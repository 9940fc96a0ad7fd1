"""One feature per video, by the protocol of clip retrieval (Xu 2019)."""

from collections.abc import Iterator
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


def video_features(
    encoder: Encoder,
    dataset: Dataset,
    protocol: ClipProtocol,
    batch_size: int,
    device: torch.device,
    indices: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return the features of videos of `dataset`, in its order or that of `indices`.

    Args:
        encoder: Lies on `device`; used in evaluation mode, its modes are restored.
        dataset: Videos of at least one frame, of any sizes.
        protocol: What a video's feature is made of.
        batch_size: Clips that the encoder takes at once; it changes the memory used, not the features.
        device: Where clips are resized and encoded.
        indices: The videos wanted; None wants all.

    Returns:
        `[num_examples, d]` float32.

    Raises:
        ValueError: If `dataset` is empty or `batch_size` is below 1.
    """
    wanted = np.arange(len(dataset)) if indices is None else indices
    if len(wanted) < 1:
        raise ValueError("dataset must have at least 1 example, got 0")
    at_least(1, batch_size=batch_size)
    videos_at_once = max(1, batch_size // protocol.num_clips)
    features = []
    with evaluating(encoder), torch.no_grad():
        for first in range(0, len(wanted), videos_at_once):
            videos = wanted[first : first + videos_at_once]
            clips = torch.cat([_read_clips(dataset.read(int(index)), protocol, device) for index in videos])
            encoded = torch.cat([_encode(encoder, part, protocol.pool) for part in torch.split(clips, batch_size)])
            features.append(encoded.float().view(len(videos), protocol.num_clips, -1).mean(dim=1).cpu().numpy())
    return np.concatenate(features).astype(np.float32, copy=False)


def _read_clips(video: NDArray[np.uint8], protocol: ClipProtocol, device: torch.device) -> Tensor:
    """Return the clips `[num_clips, channels, clip_frames, height, width]` of one video, float32 in [0, 1]."""
    frames = uniform(len(video), protocol.num_clips, protocol.clip_frames)
    clips = torch.from_numpy(video[frames]).to(device).permute(0, 4, 1, 2, 3)
    return resize(clips, protocol.height, protocol.width)


def _encode(encoder: Encoder, clips: Tensor, pool: Literal["avg", "max"]) -> Tensor:
    """Return the pooled features `[n, d]` of clips."""
    if pool == "avg":
        pooled: Tensor = encoder(clips)
        return pooled
    return F.adaptive_max_pool3d(encoder.feature_map(clips), (1, 2, 2)).flatten(1)


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
