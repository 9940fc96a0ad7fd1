"""Which sums a server has noised and released: the same noise on another sum would show their difference."""

import json
import os
from pathlib import Path

from fedssl.privacy.ledger import create, refused


class ReleasedSums:
    """Digests of the sums that were noised, a line each, written before what they became is released.

    Args:
        path: The file; one that begins makes it.
        begun: Whether the run has charged anything, so that the file must be there.

    Raises:
        PrivacyError: It is not.
    """

    def __init__(self, path: Path, *, begun: bool) -> None:
        self._path = path
        self._digests: dict[int, list[str]] = {}
        if not path.exists():
            if begun:
                raise refused(path, "is missing, and without it noise could be used twice: put it back")
            create(path)
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # killed while it wrote: that sum was not released
            os.truncate(path, whole)
        for line in content[:whole].splitlines():
            values = json.loads(line)
            self._digests.setdefault(int(values["round"]), []).append(str(values["sum"]))

    def of(self, round_number: int) -> tuple[str, ...]:
        """Return the digests of a round in the order of their releases."""
        return tuple(self._digests.get(round_number, ()))

    def add(self, round_number: int, digest: str) -> None:
        """Write a digest down; it is on the disk when this returns."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"round": round_number, "sum": digest}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._digests.setdefault(round_number, []).append(digest)
