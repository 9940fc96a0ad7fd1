"""How many clients share a GPU: measured on one client, then held to by a limit for each worker."""

from dataclasses import dataclass

_SPARE = 0.05  # of a GPU's memory, for what the allocators of several processes cannot share


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What one client needs of a GPU.

    Attributes:
        peak_bytes: Memory of the whole process at its highest, the CUDA context included.
        total_bytes: Memory of the GPU.
        seconds: Time of the client.
    """

    peak_bytes: int
    total_bytes: int
    seconds: float


def workers_per_gpu(use: GpuUse, most: int) -> int:
    """Return how many workers fit on the GPU by memory, from 1 to `most`."""
    usable = int(use.total_bytes * (1 - _SPARE))
    return max(1, min(most, usable // max(1, use.peak_bytes)))


def limit_memory(share: float) -> None:
    """Hold this process to `share` of its GPU's memory; a client that needs more fails alone."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def measure(seconds: float) -> GpuUse:
    """Return what this process used of its GPU since it began."""
    import torch

    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    return GpuUse(torch.cuda.max_memory_reserved() + context, total, seconds)
