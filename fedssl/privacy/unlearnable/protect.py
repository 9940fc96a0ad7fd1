"""Protect a source: make its noise, write what an owner may give away, and say how it was made."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedssl.arrays import sha256
from fedssl.checks import at_least
from fedssl.data.image_files import Size
from fedssl.errors import DataError
from fedssl.privacy.unlearnable.noise import Noise, read_noise, write_noise
from fedssl.privacy.unlearnable.picture import write_picture
from fedssl.privacy.unlearnable.protector import Owned, Protector, Say, silent
from fedssl.privacy.unlearnable.source import Source
from fedssl.report.rundir import RunDirectory
from fedssl.report.versions import versions

RECORD, NOISE = "protection.json", "noise.npz"


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: all that the noise depends on, beside the source.

    Attributes:
        name: Of the protection.
        settings: Its values.
        seed: Root of the noise.
        size: Height and width that the noise is made in; None takes the most common size of the source.
        device: That the noise is made on.
        threads: Cores that it is made with; another number gives other bits.

    Raises:
        ValueError: A value is out of range.
    """

    name: str
    settings: Mapping[str, Any]
    seed: int = 0
    size: Size | None = None
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        at_least(0, seed=self.seed)
        at_least(1, size=min(self.size) if self.size else None, threads=self.threads)


def protect(source: Source, out: Path, protector: Protector, order: Order, say: Say = silent) -> dict[str, Any]:
    """Write the protected copy of a source and what belongs to it; return what `protection.json` says.

    A call that was cut off goes on when it is made again: noise that is there is read, files that are there are kept.

    Args:
        source: What is protected.
        out: A new or an empty folder, or that of such a call.
        protector: Makes the noise.
        order: What the protector was made from.
        say: Told how far it is.

    Raises:
        DataError: The folder holds something else, or an example cannot be read.
        ValueError: The protector cannot protect this source.
    """
    size = order.size or source.size
    asked = {"protection": order.name, **{f"protection.{key}": value for key, value in order.settings.items()}}
    asked |= {"seed": order.seed, "size": list(size), "device": order.device, "threads": order.threads}
    asked |= {"source": source.identity}
    _check_folder(out, asked)
    if (out / NOISE).exists():
        noise = read_noise(out / NOISE)
        record: dict[str, Any] = json.loads((out / RECORD).read_text())
    else:
        noise, record = _made(source, size, protector, order, say)
        record = {"asked": asked, **record, "finished": False}
        out.mkdir(parents=True, exist_ok=True)
        _write(out, record)
        write_noise(out / NOISE, noise)
    source.protect(noise, out, say)
    write_picture(out, source, noise)
    _write(out, record | {"finished": True})
    return record


def _check_folder(out: Path, asked: Mapping[str, Any]) -> None:
    """Raise a DataError where a folder holds anything but what the same call wrote."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / RECORD).exists():
        raise DataError(f"{out}: is not empty and has no {RECORD} of an earlier call; take another folder")
    try:
        found = json.loads((out / RECORD).read_text())["asked"]
        differing = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{out / RECORD}: is no record of a protection ({error})") from error
    if differing and (out / NOISE).exists():
        key = differing[0]
        raise DataError(f"{out}: was begun with {key}={found.get(key)}, not {asked.get(key)}; take another folder")


def _made(source: Source, size: Size, protector: Protector, order: Order, say: Say) -> tuple[Noise, dict[str, Any]]:
    """Return the noise and how it was made."""
    if protector.needs_labels and (source.labels < 0).any():
        raise DataError(f"protection={order.name}: needs labels, and the source has none; use em_cluster")
    images = source.images(size, say)
    started = time.monotonic()
    device = torch.device(order.device)
    noise = protector.fit(Owned(images, source.labels, len(source.classes), order.seed, device, say))
    return noise, {
        "budget": noise.budget,
        "examples": len(noise.rows),
        "patterns": len(noise.patterns),
        "digest": sha256({"patterns": noise.patterns, "rows": noise.rows}),
        "seconds": round(time.monotonic() - started, 3),
        "versions": versions(),
    }


def _write(out: Path, record: Mapping[str, Any]) -> None:
    RunDirectory(out).write_text(RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")
