"""RotNet: tell by which right angle an image was rotated (Gidaris 2018).

"Unsupervised Representation Learning by Predicting Image Rotations".
"""

import torch
from torch import Tensor, nn

from fedssl.models.encoder import Encoder
from fedssl.objectives.answer import answer_step
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract

NUM_ROTATIONS = 4


class RotNet(Objective):
    """Cross entropy over the four rotations of each example, with a linear head on the pooled feature.

    An example's loss is the mean over its four rotations: they are one unit of privacy.
    """

    contract = PrivacyContract("per_example")
    views: tuple[Role, ...] = ("full",)

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the linear head."""
        return {"head": nn.Linear(encoder.feature_dim, NUM_ROTATIONS)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of all rotations of one view, with "accuracy"."""
        rotated, turns = rotations(batch.views[0])
        return answer_step(model["head"](model["backbone"](rotated)), turns)


def rotations(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Return the clips turned by 0, 90, 180 and 270 degrees, one angle after the other, and the number of turns.

    Args:
        clips: `[batch, channels, frames, side, side]`.

    Returns:
        `[4 * batch, channels, frames, side, side]` and `[4 * batch]` int64 in [0, 4).

    Raises:
        ValueError: The clips are not square.
    """
    height, width = clips.shape[-2:]
    if height != width:
        raise ValueError(f"height must be the width to be rotated, got {height}x{width}")
    rotated = torch.cat([clips.rot90(turns, dims=(3, 4)) for turns in range(NUM_ROTATIONS)])
    return rotated, torch.arange(NUM_ROTATIONS, device=clips.device).repeat_interleave(len(clips))
