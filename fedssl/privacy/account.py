"""What the server keeps of a mechanism: the ledger, the key, the clip as it moves, and what all of it comes to."""

import math
import os
import secrets
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedssl.arrays import Arrays
from fedssl.privacy.accounting import Accountant, epsilon
from fedssl.privacy.client import Client, NoisedMean
from fedssl.privacy.ledger import Ledger, LedgerFile, client_scope
from fedssl.privacy.mechanism import InClient, Mechanism, Setting
from fedssl.privacy.noise import REPRODUCIBLE, NoiseKey
from fedssl.privacy.statement import Statement
from fedssl.wire import LocalUpdate

LEDGER = "privacy_ledger.jsonl"
KEY = "noise.key"


class Account:
    """Charges every round before it is trained, and states what was promised.

    Args:
        mechanism: Whose releases these are.
        setting: The run.
        folder: The run directory, where the ledger is.
        seed: The run's seed.
        saved: What `state` returned in the bundle that a run goes on from; None for one that begins.

    Raises:
        PrivacyError: The ledger in the folder is not that of the run.
    """

    def __init__(
        self, mechanism: Mechanism, setting: Setting, folder: Path, seed: int, saved: Mapping[str, Any] | None
    ) -> None:
        self.mechanism = mechanism
        self.terms = mechanism.terms(setting)
        self.stopped: str | None = None
        known = (int(saved["num_charges"]), str(saved["head"])) if saved else ()
        self._file = LedgerFile(folder / LEDGER, *known)
        self._num_clients = setting.num_clients
        self._server_trains = setting.server_trains
        self._fingerprint = ""
        self._mean: NoisedMean | None = None
        if isinstance(mechanism, Client):
            key = NoiseKey.from_seed(seed) if mechanism.noise == "reproducible" else _kept_key(folder / KEY)
            clip = float(saved["clip"]) if saved else mechanism.clip
            rate = mechanism.rate(setting)
            self._mean = NoisedMean(mechanism, self.terms, rate, setting.num_clients, key, clip)
            self._fingerprint = key.fingerprint
        if mechanism.noise == "reproducible":
            self._fingerprint = NoiseKey.from_seed(seed).fingerprint
        elif mechanism.in_client:
            self._fingerprint = secrets.token_hex(8)  # clients keep their keys: nobody knows that a release is the same

    @property
    def shows_metrics(self) -> bool:
        """Whether numbers beside the model may be written down."""
        return self.mechanism.metrics == "unprotected"

    @property
    def at_server(self) -> bool:
        """Whether the server makes the release."""
        return self.mechanism.at_server

    def state(self) -> Mapping[str, Any]:
        """Return what a bundle keeps: how far the ledger is, and the clip."""
        ledger = self._file.ledger
        clip = self._mean.clip if self._mean else self.mechanism.clip
        return {"num_charges": len(ledger.charges), "head": ledger.head, "clip": clip}

    def draw(self, round_number: int) -> list[int] | None:
        """Return the partitions that coins chose for a round; None where the cohort is no secret."""
        if self._mean is None:
            return None
        return self._mean.mechanism.draw(self._mean.rate, self._num_clients, self._mean.key, round_number)

    def used_up(self, round_number: int) -> frozenset[int]:
        """Return the partitions that were in as many of the rounds before as each may be."""
        most = self.mechanism.max_rounds_per_client if isinstance(self.mechanism, InClient) else None
        if most is None:
            return frozenset()
        before = {(charge.scope, charge.round) for charge in self._file.ledger.charges if charge.round < round_number}
        rounds = Counter(scope for scope, _ in before)
        return frozenset(client for client in range(self._num_clients) if rounds[client_scope(client)] >= most)

    def charge(self, round_number: int, cohort: Sequence[int]) -> bool:
        """Write the releases of a round down before it is trained; False, and `stopped`, where they cost too much."""
        charges = self.mechanism.charges(self.terms, round_number, cohort, self._fingerprint)
        limit, accountant = self.mechanism.budget, self.mechanism.accountant
        for charge in self._file.due(charges):
            after = self._file.ledger.over(charge, limit, self.terms.delta, accountant)
            if after is not None:
                name = "target_epsilon" if self.mechanism.max_epsilon is None else "max_epsilon"
                what = f"round {round_number} would come to epsilon {after:.4g}, privacy.{name} is {limit}"
                self.stopped = f"{what} [PRIV-BUDGET]"
                return False
        self._file.charge(charges)
        return True

    def release(
        self,
        current: Arrays,
        updates: Iterator[LocalUpdate],
        round_number: int,
        buffers: frozenset[str],
        num_examples: Callable[[int], int],
    ) -> LocalUpdate:
        """Return the noised mean of a round as one update; see `fedssl.privacy.client.NoisedMean`.

        Raises:
            TypeError: The server makes no release.
        """
        if self._mean is None:
            raise TypeError(f"privacy={self.mechanism.name} releases nothing at the server")
        return self._mean(current, updates, round_number, buffers, num_examples)

    def epsilon(self) -> float | None:
        """Return what was spent so far by whoever spent most; None without a guarantee."""
        ledger = self._file.ledger
        most = max((self._epsilon(ledger, scope) for scope in ledger.scopes), default=0.0)
        return most if math.isfinite(most) else None

    def _epsilon(self, ledger: Ledger, scope: str, accountant: Accountant | None = None) -> float:
        return ledger.epsilon(scope, self.terms.delta, accountant=accountant or self.mechanism.accountant)

    def statements(self) -> list[Mapping[str, object]]:
        """Return every guarantee of the run, ready for JSON."""
        ledger, mechanism = self._file.ledger, self.mechanism
        spent = {scope: self._epsilon(ledger, scope) for scope in ledger.scopes}
        worst = max(spent, key=lambda scope: spent[scope], default=None)
        made = [self._statement(worst, spent)]
        if worst is not None and math.isfinite(spent[worst]) and mechanism.unit != "example":
            made += self._of_example(worst)
        return [statement.to_dict() for statement in made]

    def _statement(self, worst: str | None, spent: Mapping[str, float]) -> Statement:
        ledger, mechanism, terms = self._file.ledger, self.mechanism, self.terms
        most = spent[worst] if worst is not None else 0.0
        ends = math.isfinite(most)
        releases = ledger.releases(worst) if worst is not None else ()
        renyi = None
        if ends and not (mechanism.neighbours == "replace_one" and terms.release.sampling_rate < 1):
            renyi = self._epsilon(ledger, worst, "rdp") if worst is not None else 0.0
        details: dict[str, object] = {} if ends else {"reason": "updates are clipped, and nothing is noised"}
        if not mechanism.at_server and spent and ends:
            details = {"num_clients_charged": len(spent), "median_epsilon": statistics.median(spent.values())}
        return Statement(
            unit=mechanism.unit if ends else "none",
            mechanism=mechanism.name,
            adjacency=mechanism.neighbours,
            adversary=mechanism.adversary,
            released=mechanism.released,
            epsilon=most if ends else None,
            epsilon_rdp=renyi,
            delta=terms.delta if ends else None,
            accountant=mechanism.accountant,
            noise_multiplier=terms.noise_multiplier,
            clip=terms.release.clip,
            sampling_rate=terms.release.sampling_rate,
            num_releases=sum(release.count for release in releases),
            assumptions=self._assumptions() if ends else (),
            details=details,
        )

    def _of_example(self, worst: str) -> list[Statement]:
        """Return what the releases say of one example: it turns its cell, or its client, into another one."""
        mechanism, terms = self.mechanism, self.terms
        releases = self._file.ledger.releases(worst)
        return [
            Statement(
                unit="example",
                mechanism=mechanism.name,
                adjacency="replace_one",
                adversary=mechanism.adversary,
                released=mechanism.released,
                epsilon=epsilon(releases, terms.delta, accountant="pld", adjacency="replace_one"),
                epsilon_rdp=None,
                delta=terms.delta,
                accountant="pld",
                noise_multiplier=terms.release.noise_std / (2 * mechanism.clip),
                clip=mechanism.clip,
                sampling_rate=terms.release.sampling_rate,
                num_releases=sum(release.count for release in releases),
                assumptions=self._assumptions(),
            )
        ]

    def _assumptions(self) -> tuple[str, ...]:
        shown = ("loss and other training metrics are outside the guarantee",) if self.shows_metrics else ()
        server = ("the server's own labelled examples are not protected",) if self._server_trains else ()
        seeded = (f"the guarantee is {REPRODUCIBLE}",) if self.mechanism.noise == "reproducible" else ()
        return (*self.mechanism.assumptions(), *shown, *server, *seeded)


def _kept_key(path: Path) -> NoiseKey:
    """Return the key in a file that only its owner reads; a run that begins makes it."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(NoiseKey.fresh().secret)
            stream.flush()
            os.fsync(stream.fileno())
    return NoiseKey(path.read_bytes())
