"""Speed: tell how fast a clip is played (pace prediction, Wang et al. 2020).

The strides of "pace" are of Wang 2020, "Self-supervised Video Representation Learning by Pace Prediction"; the signed
strides of "speed7" add reversed and frozen clips, after SpeedNet (Benaim 2020).
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.checks import at_least, one_of
from fedssl.models.encoder import Encoder
from fedssl.objectives.answer import answer_step
from fedssl.objectives.objective import Batch, Draw, Objective, Population, Step
from fedssl.privacy.contract import PrivacyContract

STRIDES = {"pace": (1, 2, 3, 4), "speed7": (-4, -2, -1, 0, 1, 2, 4)}


class Speed(Objective):
    """Speed prediction: the loss is the cross entropy over the strides of one clip.

    Args:
        mode: "pace" has the strides 1, 2, 3, 4, and goes round when the video ends. "speed7" has the strides
            -4, -2, -1, 0, 1, 2, 4, of which a negative one plays the clip backwards and 0 repeats one frame, and
            stays on the last frame when the video ends.
        clip_frames: Frames of a clip.
        dropout: Probability of dropping a feature before the linear head.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example")
    num_uniforms = 2

    def __init__(self, mode: Literal["pace", "speed7"] = "pace", clip_frames: int = 8, dropout: float = 0.5) -> None:
        one_of(STRIDES, mode=mode)
        at_least(2, clip_frames=clip_frames)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.mode = mode
        self.strides = STRIDES[mode]
        self.clip_frames = clip_frames
        self.dropout = dropout
        self.min_batch = 2  # batch normalisation has no variance of one example
        self.min_frames = clip_frames

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose a stride and a start; the target is the place of the stride in `strides`.

        Args:
            num_frames: Frames of the video.
            uniforms: `[2]` in [0, 1), for the stride and the start.

        Returns:
            Frames `[1, clip_frames]` and the target in [0, len(strides)).

        Raises:
            ValueError: If the video is shorter than one clip.
        """
        at_least(self.min_frames, num_frames=num_frames)
        target = int(uniforms[0] * len(self.strides))
        stride = self.strides[target]
        span = 1 + (self.clip_frames - 1) * abs(stride)
        start = int(uniforms[1] * (max(num_frames - span, 0) + 1))
        return Draw(frames=self.frames(num_frames, start, stride)[None], target=target)

    def frames(self, num_frames: int, start: int, stride: int) -> NDArray[np.int64]:
        """Return the frames `[clip_frames]` that a clip shows.

        Args:
            num_frames: Frames of the video.
            start: Earliest frame of the clip.
            stride: Frames from one to the next; a negative one gives the frames of the positive one, reversed.
        """
        frames = start + abs(stride) * np.arange(self.clip_frames, dtype=np.int64)
        inside = frames % num_frames if self.mode == "pace" else np.minimum(frames, num_frames - 1)
        return inside[::-1].copy() if stride < 0 else inside

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the linear head."""
        linear = nn.Linear(encoder.feature_dim, len(self.strides))
        return {"head": nn.Sequential(nn.Dropout(self.dropout), linear)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of one view, with "accuracy"."""
        logits: Tensor = model["head"](model["backbone"](batch.views[0]))
        return answer_step(logits, batch.targets)
