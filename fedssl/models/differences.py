"""An encoder of motion: it sees the differences of successive frames (Tao 2020, "Rethinking Motion Representation").

Without the static background and most of a person's looks, what is left to tell clips apart is what moves.
"""

from torch import Tensor, nn

from fedssl.models.encoder import Encoder


class FrameDifferences(nn.Module):
    """Maps clips `[batch, channels, frames, height, width]` to `frames - 1` differences, each the later frame's."""

    def forward(self, clips: Tensor) -> Tensor:
        """Return `clips[:, :, t + 1] - clips[:, :, t]`.

        Raises:
            ValueError: If a clip has one frame only.
        """
        if clips.shape[2] < 2:
            raise ValueError(f"clip_frames must be at least 2 for frame differences, got {clips.shape[2]}")
        return clips[:, :, 1:] - clips[:, :, :-1]


def differences(encoder: Encoder) -> Encoder:
    """Return `encoder` behind the differences of successive frames.

    Args:
        encoder: Any encoder of clips.

    Returns:
        An encoder of as many features, for clips of at least two frames.
    """
    return Encoder(nn.Sequential(FrameDifferences(), encoder.body), encoder.feature_dim)
