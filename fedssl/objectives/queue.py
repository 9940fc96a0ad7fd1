"""A first-in, first-out bank of unit embeddings: the queue of MoCo, NNCLR, All4One and SwAV (He 2020)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least

_PASSES = 8  # of the largest client: rows of more are of the same examples under ever older networks


class Queue(nn.Module):
    """Keeps the last rows that were written; slots that were never written are left out.

    Its buffers hold values of a client's examples, so its group is private.

    Args:
        size: Most rows that are kept.
        dim: Width of a row.

    Raises:
        ValueError: If an argument is below 1.
    """

    embeddings: Tensor
    count: Tensor  # rows ever written

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        at_least(1, size=size, dim=dim)
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return min(int(self.count), len(self.embeddings))

    def rows(self) -> Tensor:
        """Return a copy of the written rows `[len(self), dim]`, the oldest first."""
        return self.embeddings[self._slots(len(self))]

    @torch.no_grad()
    def write(self, embeddings: Tensor) -> None:
        """Write rows `[n, dim]` of unit length over the oldest; of more than `size` rows, the last are kept."""
        kept = embeddings[-len(self.embeddings) :]
        self.count += len(embeddings)
        self.embeddings[self._slots(len(kept))] = kept.to(self.embeddings.dtype)

    def clear(self) -> None:
        """Forget every row."""
        self.embeddings.zero_()
        self.count.zero_()

    def _slots(self, number: int) -> Tensor:
        """Return where the last `number` rows are, the oldest first."""
        written = torch.arange(number, device=self.embeddings.device) + (int(self.count) - number)
        return written % len(self.embeddings)


def capacity(size: int, num_examples: int) -> int:
    """Return `size`, but at most eight rows for each example of the largest client, and at least one."""
    return max(1, min(size, _PASSES * num_examples))


def unit(embeddings: Tensor) -> Tensor:
    """Return the rows of `embeddings` at unit length, in float32 or better; a row of zeros stays one."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
