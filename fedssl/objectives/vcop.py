"""VCOP: tell the order of shuffled clips (Xu 2019, "Self-Supervised Spatiotemporal Learning via Video Clip Order")."""

from itertools import combinations, islice, permutations
from math import comb, factorial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.objectives.answer import answer_step
from fedssl.objectives.objective import Batch, Draw, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract


class VcopHead(nn.Module):
    """Maps the features of shuffled clips, compared pair by pair, to the logits of their orders.

    Args:
        feature_dim: Width of a clip's feature.
        num_clips: Clips of a video.
        hidden: Width of a compared pair.
        dropout: Probability of dropping a hidden unit.
    """

    def __init__(self, feature_dim: int, num_clips: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.pairs = tuple(combinations(range(num_clips), 2))
        self.compare = nn.Sequential(nn.Linear(2 * feature_dim, hidden), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(comb(num_clips, 2) * hidden, factorial(num_clips))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits `[batch, num_clips!]` of features `[batch, num_clips, feature_dim]`."""
        pairs = [torch.cat((features[:, first], features[:, second]), dim=1) for first, second in self.pairs]
        compared: Tensor = self.compare(torch.stack(pairs, dim=1))
        logits: Tensor = self.classify(self.dropout(compared.flatten(1)))
        return logits


class Vcop(Objective):
    """Clip order prediction: the loss is the cross entropy over all orders of the clips of one video.

    Args:
        num_clips: Clips of a video; the number of orders is its factorial.
        clip_frames: Frames of a clip.
        gap_frames: Frames left out between clips.
        hidden: Width of a compared pair of clips.
        dropout: Probability of dropping a hidden unit of the head.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example")
    num_uniforms = 2

    def __init__(
        self,
        num_clips: int = 3,
        clip_frames: int = 6,
        gap_frames: int = 2,
        hidden: int = 512,
        dropout: float = 0.5,
    ) -> None:
        at_least(2, num_clips=num_clips)
        at_least(1, clip_frames=clip_frames, hidden=hidden)
        at_least(0, gap_frames=gap_frames)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.num_clips = num_clips
        self.clip_frames = clip_frames
        self.gap_frames = gap_frames
        self.hidden = hidden
        self.dropout = dropout
        role: Role = "full"
        self.views = (role,) * num_clips
        self.min_frames = clip_frames

    @property
    def span(self) -> int:
        """Frames from the first of the first clip to the last of the last clip."""
        return self.clip_frames * self.num_clips + self.gap_frames * (self.num_clips - 1)

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose a start and an order: view `k` shows the original clip `order[k]`.

        The target is the place of the order among all of them, sorted; the unshuffled order is 0. A video shorter
        than the span gets evenly spaced, overlapping clips.

        Args:
            num_frames: Frames of the video.
            uniforms: `[2]` in [0, 1), for the order and the start.

        Returns:
            Frames `[num_clips, clip_frames]` and the target in [0, num_clips!).

        Raises:
            ValueError: If the video is shorter than one clip.
        """
        at_least(self.min_frames, num_frames=num_frames)
        starts = self._starts(num_frames, uniforms[1])
        target = int(uniforms[0] * factorial(self.num_clips))
        order = np.array(next(islice(permutations(range(self.num_clips)), target, None)))
        return Draw(frames=starts[order, None] + np.arange(self.clip_frames), target=target)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the head that compares the clips."""
        return {"head": VcopHead(encoder.feature_dim, self.num_clips, self.hidden, self.dropout)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of `num_clips` views, with "accuracy"."""
        clips = torch.stack(batch.views, dim=1)
        features: Tensor = model["backbone"](clips.flatten(0, 1))
        logits: Tensor = model["head"](features.view(*clips.shape[:2], -1))
        return answer_step(logits, batch.targets)

    def _starts(self, num_frames: int, uniform: float) -> NDArray[np.int64]:
        """Return the first frame of each clip `[num_clips]`, in order of time."""
        if num_frames < self.span:
            return np.linspace(0, num_frames - self.clip_frames, self.num_clips).round().astype(np.int64)
        start = int(uniform * (num_frames - self.span + 1))
        return np.asarray(start + np.arange(self.num_clips) * (self.clip_frames + self.gap_frames), dtype=np.int64)
