"""What has been charged for, written down before it is released: an append-only chain of charges."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedssl.errors import PrivacyError
from fedssl.privacy.accounting import Accountant, Adjacency, Release, epsilon

EMPTY_HEAD = sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Charge:
    """One release, or several that are alike, of one round.

    Attributes:
        scope: Whose data it is charged to: "server", or a client as in "client 3". Scopes never add up.
        round: Of the federation.
        mechanism: What added the noise: "example", "cell", "client" or "local".
        unit: What is protected: "example", "cell" or "client".
        adjacency: What neighbouring data are.
        release: What the accountants count.
        key: Fingerprint of the noise's key: the same key, round and scope are the same noise.
    """

    scope: str
    round: int
    mechanism: str
    unit: str
    adjacency: Adjacency
    release: Release
    key: str


SERVER = "server"


def client_scope(partition: int) -> str:
    """Return what a client's data are charged to."""
    return f"client {partition}"


def charge_of(values: Mapping[str, Any]) -> Charge:
    """Return the charge that `dataclasses.asdict` made these values of.

    Raises:
        TypeError: A value is missing, or one too many.
        KeyError: There is no release.
    """
    return Charge(**{**values, "release": Release(**values["release"])})


class Ledger:
    """Charges in the order in which they were made; none is ever taken back.

    Args:
        charges: The first ones.

    Raises:
        ValueError: As by `add`.
    """

    def __init__(self, charges: Iterable[Charge] = ()) -> None:
        self._charges: list[Charge] = []
        self._head = EMPTY_HEAD
        self._adjacencies: dict[str, tuple[str, Adjacency]] = {}
        self._releases: dict[str, list[Release]] = {}
        for charge in charges:
            self.add(charge)

    @property
    def charges(self) -> tuple[Charge, ...]:
        """All charges."""
        return tuple(self._charges)

    @property
    def head(self) -> str:
        """Digest of the whole chain, in hexadecimal."""
        return self._head

    @property
    def scopes(self) -> tuple[str, ...]:
        """What was charged, in the order of the first charges."""
        return tuple(self._releases)

    def add(self, charge: Charge) -> None:
        """Append a charge.

        Raises:
            ValueError: Its scope was charged for another unit or under another adjacency: they cannot be added up.
        """
        protected = (charge.unit, charge.adjacency)
        known = self._adjacencies.setdefault(charge.scope, protected)
        if known != protected:
            raise ValueError(f"scope {charge.scope} must be charged for {' under '.join(known)}, got {protected}")
        self._charges.append(charge)
        self._head = _digest(self._head, charge)
        releases = self._releases.setdefault(charge.scope, [])
        if releases and replace(releases[-1], count=charge.release.count) == charge.release:
            releases[-1] = replace(releases[-1], count=releases[-1].count + charge.release.count)
        else:
            releases.append(charge.release)

    def releases(self, scope: str) -> tuple[Release, ...]:
        """Return what was released of a scope; alike ones that follow each other are one."""
        return tuple(self._releases.get(scope, ()))

    def over(self, charge: Charge, limit: float | None, delta: float, accountant: Accountant) -> float | None:
        """Return the epsilon that a scope would come to with one charge more; None where it is within the limit.

        Without a limit everything is. Where the loose and cheap bound is within the limit the tight one is too, and is
        not computed.

        Raises:
            ValueError: `delta` is out of range, or the accountant cannot bound these releases.
        """
        if limit is None:
            return None
        releases = (*self.releases(charge.scope), charge.release)
        sampled = any(release.sampling_rate < 1 for release in releases)
        has_cheap = accountant == "pld" and sampled and charge.adjacency != "replace_one"
        if has_cheap and epsilon(releases, delta, accountant="rdp", adjacency=charge.adjacency) <= limit:
            return None
        after = epsilon(releases, delta, accountant=accountant, adjacency=charge.adjacency)
        return after if after > limit else None

    def epsilon(self, scope: str, delta: float, *, accountant: Accountant = "pld") -> float:
        """Return the epsilon of all that was released of a scope, under the adjacency it was charged for.

        Raises:
            ValueError: `delta` is out of range, or the accountant cannot bound these releases.
        """
        _, adjacency = self._adjacencies.get(scope, ("", "add_remove"))
        return epsilon(self.releases(scope), delta, accountant=accountant, adjacency=adjacency)


class LedgerFile:
    """A ledger on the disk: a line a charge, with the digest of the chain up to it.

    A charge is on the disk before what it pays for is released. A run that was killed in between finds charges beyond
    those that its checkpoint knows: they stay counted, and the same release, made again, pays nothing.

    Args:
        path: The file; it is made where there is none. Its folder exists.
        num_charges: How many charges the checkpoint knows.
        head: Digest of their chain.

    Raises:
        PrivacyError: Charges that the checkpoint knows are missing, or the file was changed.
    """

    def __init__(self, path: Path, num_charges: int = 0, head: str = EMPTY_HEAD) -> None:
        self._path = path
        if not path.exists():
            if num_charges:
                raise refused(path, "is missing, and without it what was spent is not known: put it back")
            create(path)
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        self._ledger = _parsed(path, content[:whole])
        charges = self._ledger.charges
        if len(charges) < num_charges:
            raise refused(path, f"holds {len(charges)} charges, the checkpoint {num_charges}: put the whole file back")
        if Ledger(charges[:num_charges]).head != head:
            raise refused(path, "is not the ledger of this checkpoint: put that one back")
        self._ahead: dict[Charge, set[str]] = {}  # without its key: the keys under which it was written ahead
        for charge in charges[num_charges:]:
            self._ahead.setdefault(replace(charge, key=""), set()).add(charge.key)
        if whole < len(content):  # killed while it wrote: what the line was to pay for was never released
            os.truncate(path, whole)

    @property
    def ledger(self) -> Ledger:
        """All charges of the file."""
        return self._ledger

    def due(self, charges: Sequence[Charge]) -> tuple[Charge, ...]:
        """Return those of the charges that would be written: the others were written ahead, and are counted.

        A charge that was written ahead and comes again with its key is the same release, which is paid for; with
        another key it is one more. Two of the same scope and round that differ in nothing but their keys are one
        charge of count 2.

        Raises:
            PrivacyError: Not these charges were written ahead, but others.
        """
        unkeyed = [replace(charge, key="") for charge in charges]
        made = set(unkeyed)
        missing = [charge for charge in self._ahead if charge not in made]
        if missing and any(charge not in self._ahead for charge in unkeyed):
            raise refused(
                self._path,
                f"has charged {missing[0].scope} for round {missing[0].round} otherwise than this run would: "
                "resume with the settings of the run that was killed",
            )
        paid = [self._ahead.get(charge, set()) for charge in unkeyed]
        return tuple(charge for charge, keys in zip(charges, paid, strict=True) if charge.key not in keys)

    def charge(self, charges: Sequence[Charge]) -> None:
        """Charge for releases that are about to be made: what is `due` is on the disk when this returns, by one write.

        Raises:
            PrivacyError: As by `due`.
            ValueError: As by `Ledger.add`.
        """
        due = self.due(charges)
        for charge in charges:
            self._ahead.pop(replace(charge, key=""), None)
        self._write(due)

    def charge_again(self, charge: Charge) -> None:
        """Charge for one more release of a round that is charged already; nothing where just this is written down.

        Raises:
            ValueError: As by `Ledger.add`.
        """
        if charge not in self._ledger.charges:
            self._ahead.pop(replace(charge, key=""), None)
            self._write((charge,))

    def _write(self, charges: Sequence[Charge]) -> None:
        lines = []
        for charge in charges:
            self._ledger.add(charge)
            lines.append(_line(charge, self._ledger.head))
        if lines:
            with self._path.open("ab") as stream:
                stream.write("".join(lines).encode())
                stream.flush()
                os.fsync(stream.fileno())


def _digest(head: str, charge: Charge) -> str:
    return sha256((head + json.dumps(asdict(charge), allow_nan=False)).encode()).hexdigest()


def _line(charge: Charge, head: str) -> str:
    return json.dumps({**asdict(charge), "chain": head}, allow_nan=False) + "\n"


def _parsed(path: Path, content: bytes) -> Ledger:
    """Return the ledger that whole lines hold; each must be, to the letter, the one that was written there."""
    ledger = Ledger()
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            values = json.loads(line)
            del values["chain"]
            charge = charge_of(values)
            ledger.add(charge)
            sound = _line(charge, ledger.head).encode() == line
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise refused(path, f"was changed in line {number}: put back what was written")
    return ledger


def create(path: Path) -> None:
    """Make an empty file that is there after a crash too."""
    with path.open("xb") as stream:
        os.fsync(stream.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def refused(path: Path, reason: str) -> PrivacyError:
    """Return why a run does not go on with a file of its directory."""
    return PrivacyError(f"{path} {reason}", "PRIV-RESUME")
