"""Encoders that runs leave behind, read from their files."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def read_encoder(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a safetensors file by name.

    Raises:
        OSError: There is no such file.
        ValueError: It is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: dict[str, NDArray[Any]] = load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"cannot be read ({error})") from error
    return tensors
