"""An objective of images on clips: views are clips of one video (Feichtenhofer 2021).

"A Large-Scale Study on Unsupervised Spatiotemporal Representation Learning", where BYOL so trained is rho-BYOL.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.checks import at_least
from fedssl.models.encoder import Encoder
from fedssl.objectives.clips import strided
from fedssl.objectives.objective import Batch, Draw, Objective, Population, Role, Step


class RhoClips(Objective):
    """Another objective whose views are clips that begin anywhere in a video; the loss is its mean over pairs of clips.

    A clip is encoded once in each of its pairs, `rho - 1` times.

    Args:
        host: The other objective, of two full views, or of one.
        rho: Clips of a video, at least 2; 1 for a host of one view, such as RotNet.
        clip_frames: Frames of a clip.
        stride: Frames from one of a clip to the next; where a video is too short for it, the greatest that fits.

    Raises:
        ValueError: If an argument is out of range, or the host chooses frames itself or takes other views.
    """

    def __init__(self, host: Objective, rho: int = 2, clip_frames: int = 8, stride: int = 1) -> None:
        at_least(1, clip_frames=clip_frames, stride=stride)
        name = type(host).__name__
        if type(host).draw is not Objective.draw or host.views not in ((host.views[0],), ("full", "full")):
            raise ValueError(f"host must be an objective of two full views of images, or of one view, got {name}")
        pairs = len(host.views) == 2
        if rho < 2 if pairs else rho != 1:
            raise ValueError(f"rho must be {'at least 2' if pairs else '1'} for {name}, got {rho}")
        role: Role = host.views[0]
        self.host = host
        self.rho = rho
        self.stride = stride
        self.contract = host.contract
        self.views = (role,) * rho
        self.min_batch = host.min_batch
        self.min_frames = clip_frames
        self.num_uniforms = rho + host.num_uniforms
        self.needs_labels = host.needs_labels
        self.unlabelled_ratio = host.unlabelled_ratio

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose the start of each clip; there is no answer, the target is 0.

        Args:
            num_frames: Frames of the video.
            uniforms: `[num_uniforms]` in [0, 1), of which the first `rho` are used; the host has the others.

        Returns:
            Frames `[rho, clip_frames]`.

        Raises:
            ValueError: If the video is shorter than one clip.
        """
        return Draw(strided(num_frames, self.min_frames, self.stride, uniforms[: self.rho]), 0)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the host's groups."""
        return self.host.build(encoder, population)

    def begin_round(self, model: nn.ModuleDict, *, first: bool) -> None:
        """Prepare what the host keeps."""
        self.host.begin_round(model, first=first)

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the host's loss, and the mean of it and its numbers over all pairs of clips."""
        own = replace(batch, uniforms=batch.uniforms[:, self.rho :])
        if self.rho <= 2:
            return self.host.step(model, own)
        steps = [self.host.step(model, replace(own, views=pair)) for pair in combinations(batch.views, 2)]
        return Step(torch.stack([step.loss for step in steps]).mean(), _means([step.metrics for step in steps]))

    def after_step(self, model: nn.ModuleDict, progress: float) -> None:
        """Move what the host moves."""
        self.host.after_step(model, progress)


def _means(metrics: list[Mapping[str, float | Tensor]]) -> dict[str, float | Tensor]:
    return {name: sum(each[name] for each in metrics) / len(metrics) for name in metrics[0]}
