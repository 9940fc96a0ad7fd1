"""CVRL: two clips of one video attract, clips of other videos repel (Qian 2021).

"Spatiotemporal Contrastive Video Representation Learning", with the loss of SimCLR.
"""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedssl.checks import above, at_least
from fedssl.models.encoder import Encoder
from fedssl.objectives.nt_xent import TwoViews, nt_xent
from fedssl.objectives.objective import Batch, Draw, Population, Step


class Cvrl(TwoViews):
    """Contrast of clips: the loss of SimCLR on two clips of each video.

    A client's own videos are the negatives: where a client is a person, clips of one person that do different things.

    Args:
        clip_frames: Frames of a clip.
        temperature: Temperature of the cosines.
        hidden: Width of the projector's hidden layer.
        dim: Width of an embedding.

    Raises:
        ValueError: If an argument is out of range.
    """

    num_uniforms = 3

    def __init__(self, clip_frames: int = 8, temperature: float = 0.2, hidden: int = 64, dim: int = 32) -> None:
        at_least(1, clip_frames=clip_frames, hidden=hidden, dim=dim)
        above(0, temperature=temperature)
        self.clip_frames = clip_frames
        self.temperature = temperature
        self.hidden = hidden
        self.dim = dim
        self.min_frames = clip_frames

    def draw(self, num_frames: int, uniforms: NDArray[np.float64]) -> Draw:
        """Choose two clips, the nearer in time the likelier, in a random order; there is no answer, the target is 0.

        The density of the offset between them falls linearly to 0 at the greatest one, its mean a third of that.

        Args:
            num_frames: Frames of the video.
            uniforms: `[3]` in [0, 1), for the offset, the start and the order.

        Returns:
            Frames `[2, clip_frames]`.

        Raises:
            ValueError: If the video is shorter than one clip.
        """
        at_least(self.min_frames, num_frames=num_frames)
        greatest = num_frames - self.clip_frames
        offset = round(greatest * (1 - np.sqrt(1 - uniforms[0])))
        start = int(uniforms[1] * (greatest - offset + 1))
        starts = np.array([start, start + offset] if uniforms[2] < 0.5 else [start + offset, start])
        return Draw(frames=starts[:, None] + np.arange(self.clip_frames), target=0)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the projector."""
        layers = nn.Linear(encoder.feature_dim, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.dim)
        return {"projector": nn.Sequential(*layers)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of two views."""
        first, second = self.embeddings(model, batch)
        return Step(loss=nt_xent(first, second, self.temperature), metrics={})
