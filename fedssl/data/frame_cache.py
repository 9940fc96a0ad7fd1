"""Decoded frames on disk, so that only the first epoch waits for decoding."""

import fcntl
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedssl.checks import at_least
from fedssl.errors import DataError

LOGGER = logging.getLogger("fedssl")

LEFTOVER_SECONDS = 3600.0
"""A file that is still being written after this long was left behind by a process that was killed."""

HEADER_BYTES = 128
ROOM = 0.1
"""Share of the limit that is freed at once, so that not every file that comes has to look for the oldest."""


class KeyedDecoder(Protocol):
    """Reads a file, and says what its frames depend on beside the file."""

    @property
    def settings(self) -> str:
        """What makes frames of the same file differ."""
        ...

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Return a file as `[frames, height, width, channels]`; DataError if it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class FrameCache:
    """A decoder that keeps what it decoded in a folder, which processes of one or more runs share.

    An entry is a `.npy` file, named by a hash of the video's path, size, time of change and the decoder's settings,
    and read through a memory map: an epoch reads from disk, or from the memory that the system lends it, the frames
    that it uses. Entries that were not read for longest go first; a folder smaller than the data set is of little use,
    since an epoch then comes to each video after it went.

    Attributes:
        decode: Reads a file that is not in the folder.
        folder: Made where it is not there.
        max_bytes: What all entries may take together; a file that alone takes more is not kept.

    Raises:
        DataError: The folder cannot be made or written.
    """

    decode: KeyedDecoder
    folder: Path
    max_bytes: int

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be used as a cache ({error.strerror})") from error

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Return `[frames, height, width, channels]` uint8, read-only: the same bits as those of `decode`.

        Raises:
            DataError: The file is not in the cache and cannot be decoded.
        """
        entry = self.entry(path)
        frames = None if entry is None else _load(entry)
        if frames is None:
            frames = self.decode(path)
            frames.setflags(write=False)
            if entry is not None:
                self._store(entry, frames, replace=True)
        return frames

    def entry(self, path: Path) -> Path | None:
        """Return where the frames of a file are kept; None of a file that is not there."""
        try:
            found = path.stat()
        except OSError:
            return None
        key = (str(path.absolute()), found.st_size, found.st_mtime_ns, self.decode.settings)
        return self.folder / f"{sha256(repr(key).encode()).hexdigest()[:40]}.npy"

    def add(self, path: Path) -> bool:
        """Keep the frames of a file where there is room without removing others; return whether there was.

        Raises:
            DataError: The file cannot be decoded.
        """
        entry = self.entry(path)
        if entry is not None and entry.exists():
            return True
        frames = self.decode(path)
        return entry is None or self._store(entry, frames, replace=False)

    def _store(self, entry: Path, frames: NDArray[np.uint8], replace: bool) -> bool:
        """Write an entry under another name and rename it, so that no reader meets half of one."""
        size = frames.nbytes + HEADER_BYTES
        temporary = self.folder / f"{entry.stem}.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            if not self._reserve(temporary, size, replace):
                return False
            with temporary.open("r+b") as stream:
                np.save(stream, frames)
                stream.truncate()
                stream.flush()
                os.fsync(stream.fileno())  # after a power cut an entry is whole or not there
            temporary.replace(entry)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            LOGGER.warning("%s: frames cannot be kept (%s)", self.folder, error.strerror)
            return False
        return True

    def _reserve(self, temporary: Path, size: int, replace: bool) -> bool:
        """Take room for an entry by a file of its size, and remove old ones for it; return whether there is room."""
        if size > self.max_bytes:
            return False
        with self._locked() as counter:
            noted = counter.read_text()  # empty in a new folder, and where a process was killed
            total = int(noted) if noted.isdecimal() else self._make_room(self.max_bytes)
            if total + size > self.max_bytes:
                total = self._make_room(int((1 - ROOM) * self.max_bytes) - size if replace else self.max_bytes)
            if total + size > self.max_bytes:
                return False
            with temporary.open("wb") as stream:
                stream.truncate(size)
            counter.write_text(str(total + size))
        return True

    def _make_room(self, wanted: int) -> int:
        """Remove the entries that were not read for longest until `wanted` bytes are left; return how many are."""
        files = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):  # what is being written gets its name at any time
                if file.suffix in (".npy", ".tmp"):
                    files.append((file.stat().st_mtime, file.stat().st_size, file))
        total = sum(size for _, size, _ in files)
        for changed, size, file in sorted(files):
            left_behind = file.suffix == ".tmp" and changed < time.time() - LEFTOVER_SECONDS
            if left_behind or (file.suffix == ".npy" and total > max(wanted, 0)):
                file.unlink(missing_ok=True)
                total -= size
        return total

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """Let one process or thread at a time change what the folder holds; yield the file with the sum of bytes."""
        counter = self.folder / "bytes"
        with counter.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield counter


def cached(decode: KeyedDecoder, folder: str | None, max_bytes: int) -> KeyedDecoder | FrameCache:
    """Return a decoder that keeps its frames in `folder`; `decode` itself where that is None."""
    at_least(1, cache_bytes=max_bytes)
    return decode if folder is None else FrameCache(decode, Path(folder), max_bytes)


def fill(cache: FrameCache, paths: Sequence[Path]) -> None:
    """Decode what is not in a cache, on every core, with a bar on stderr where that is a terminal.

    It stops where the folder is full; files that cannot be read are left to those who want them.
    """
    from rich.console import Console
    from rich.progress import track

    missing = [path for path in paths if (entry := cache.entry(path)) is not None and not entry.exists()]
    stop = threading.Event()

    def add(path: Path) -> None:
        try:
            if not stop.is_set() and not cache.add(path):
                stop.set()
        except DataError as error:
            LOGGER.warning("%s", error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(add, missing)
        hidden = not (missing and sys.stderr.isatty())
        bar = track(done, "decoding", len(missing), console=Console(stderr=True), transient=True, disable=hidden)
        try:
            for _ in bar:
                pass
        except BaseException:
            stop.set()  # an interrupt does not wait for the files that are left
            raise
    if stop.is_set():
        LOGGER.warning("%s: data.cache_bytes are not enough for all frames, which are then decoded again", cache.folder)


def _load(entry: Path) -> NDArray[np.uint8] | None:
    """Return an entry as a read-only map; None where there is none, or what is there is no entry."""
    try:
        with entry.open("rb", buffering=0) as stream:
            mapped = mmap(stream.fileno(), 0, access=ACCESS_READ)
        # as np.load does, but a third of its time: headers repeat
        frames = np.frombuffer(mapped, np.uint8, offset=HEADER_BYTES).reshape(_shape(mapped[:HEADER_BYTES]))
    except ValueError:
        with suppress(OSError):
            entry.unlink()
        return None
    except OSError:
        return None
    with suppress(OSError):  # an entry of another user, or one that was removed meanwhile
        os.utime(entry)
    return frames


@lru_cache(maxsize=4096)
def _shape(header: bytes) -> tuple[int, ...]:
    """Return the shape in the header of a .npy file; ValueError if it is none."""
    stream = BytesIO(header)
    np.lib.format.read_magic(stream)
    shape, _, _ = np.lib.format.read_array_header_1_0(stream)
    return tuple(shape)
