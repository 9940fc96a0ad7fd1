"""What the server keeps of a mechanism: the ledger, the key, the clip as it moves, and what all of it comes to."""

import math
import os
import secrets
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.errors import PrivacyError
from fedssl.privacy.accounting import Accountant, Adjacency, epsilon, group_epsilon
from fedssl.privacy.client import Client, NoisedMean
from fedssl.privacy.ledger import SERVER, Ledger, LedgerFile, client_scope
from fedssl.privacy.mechanism import InClient, Mechanism, Setting
from fedssl.privacy.noise import REPRODUCIBLE, NoiseKey
from fedssl.privacy.planted import EVIDENCE, EXTRA, Planting
from fedssl.privacy.released_sums import ReleasedSums
from fedssl.privacy.statement import Statement
from fedssl.wire import LocalUpdate

LEDGER = "privacy_ledger.jsonl"
KEY = "noise.key"
SUMS = "privacy_sums.jsonl"


class Account:
    """Charges every round before it is trained, and states what was promised.

    Args:
        mechanism: Whose releases these are.
        setting: The run.
        folder: The run directory, where the ledger is.
        seed: The run's seed.
        saved: What `state` returned in the bundle that a run goes on from; None for one that begins.
        planting: Canaries among the units; None plants none.

    Raises:
        PrivacyError: The ledger in the folder is not that of the run.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        setting: Setting,
        folder: Path,
        seed: int,
        saved: Mapping[str, Any] | None,
        planting: Planting | None = None,
    ) -> None:
        self.mechanism = mechanism
        self.terms = mechanism.terms(setting)
        self.stopped: str | None = None
        known = (int(saved["num_charges"]), str(saved["head"])) if saved else ()
        self._file = LedgerFile(folder / LEDGER, *known)
        self._num_clients = setting.num_clients
        self._setting = setting
        self._fingerprint = ""
        self._mean: NoisedMean | None = None
        self._planting = planting
        self._evidence: dict[str, list[float]] = dict(saved.get("evidence", {})) if saved else {}
        if isinstance(mechanism, Client):
            key = NoiseKey.from_seed(seed) if mechanism.noise == "reproducible" else _kept_key(folder / KEY)
            clip = float(saved["clip"]) if saved else mechanism.clip
            rate = mechanism.rate(setting)
            self._mean = NoisedMean(
                mechanism, self.terms, rate, setting.num_clients, key, clip, planting, self._attempt
            )
            self._sums = ReleasedSums(folder / SUMS, begun=bool(self._file.ledger.charges))
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
        """Return what a bundle keeps: how far the ledger is, the clip, and what was seen of canaries."""
        ledger = self._file.ledger
        clip = self._mean.clip if self._mean else self.mechanism.clip
        return {"num_charges": len(ledger.charges), "head": ledger.head, "clip": clip, "evidence": self.evidence}

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

    def _attempt(self, round_number: int, digest: str) -> int:
        """Return how many other sums of a round were released; one more of them is charged once more.

        A process that goes on after a kill makes the rounds since the last bundle again. Where a client failed in one
        of the two, the sums differ.
        """
        known = self._sums.of(round_number)
        if digest not in known:
            if known:
                (same,) = self.mechanism.charges(self.terms, round_number, (), f"{self._fingerprint}/{len(known)}")
                # the coins of a round are drawn once, so what is released again is not sampled again
                charge = replace(same, release=replace(same.release, sampling_rate=1.0))
                after = self._file.ledger.over(
                    charge, self.mechanism.budget, self.terms.delta, self.mechanism.accountant
                )
                if after is not None:
                    what = (
                        f"round {round_number} was released with other updates, once more comes to epsilon {after:.4g}"
                    )
                    raise PrivacyError(f"{what}, privacy allows {self.mechanism.budget}", "PRIV-BUDGET")
                self._file.charge_again(charge)
            self._sums.add(round_number, digest)
        return self._sums.of(round_number).index(digest)

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
        released = self._mean(current, updates, round_number, buffers, num_examples)
        if self._mean.planted is not None:
            self._note(SERVER, self._mean.planted.taken())
        return released

    @property
    def evidence(self) -> dict[str, list[float]]:
        """What the releases so far show of each canary, by the scope that it is planted in."""
        return {scope: list(values) for scope, values in sorted(self._evidence.items())}

    @property
    def extras(self) -> Mapping[str, Arrays]:
        """Named groups of arrays that every update must bring beside the model; their values mean nothing."""
        if self._planting is None or self.at_server:
            return {}
        return {EXTRA: {EVIDENCE: np.zeros(self._planting.number)}}

    def received(self, update: LocalUpdate) -> None:
        """Take what an update says of the canaries in its client."""
        if self.extras:
            self._note(client_scope(update.partition), update.extras[EXTRA][EVIDENCE])

    def _note(self, scope: str, evidence: NDArray[np.float64]) -> None:
        before = self._evidence.get(scope, [0.0] * len(evidence))
        self._evidence[scope] = [old + float(new) for old, new in zip(before, evidence, strict=True)]

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
        ends = worst is not None and math.isfinite(spent[worst])
        if worst is not None and ends and mechanism.group_size > 1:
            made.append(self._of_group(worst))
        if worst is not None and ends and mechanism.unit != "example" and not self._setting.overlapping:
            made.append(self._of_example(worst))
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

    def _of_example(self, worst: str) -> Statement:
        """Return what the releases say of one example: it turns its cell, or its client, into another one."""
        releases, number = self._file.ledger.releases(worst), self._setting.num_examples
        # a delta that one over the clients allows may publish an example
        delta = min(self.terms.delta, 1 / (10 * number)) if number else self.terms.delta
        found = epsilon(releases, delta, accountant="pld", adjacency="replace_one")
        return self._more(worst, "example", "replace_one", found, delta, 2 * self.mechanism.clip)

    def _of_group(self, worst: str) -> Statement:
        """Return what the releases say of several units that are of one person."""
        mechanism, size = self.mechanism, self.mechanism.group_size
        found = group_epsilon(self._file.ledger.releases(worst), self.terms.delta, size)
        of = "" if mechanism.at_server else " of one client"
        name = f"group of {size} {mechanism.unit}s{of}"
        return self._more(worst, name, mechanism.neighbours, found, self.terms.delta, size * self.terms.release.clip)

    def _more(
        self, worst: str, unit: str, adjacency: Adjacency, found: float, delta: float, sensitivity: float
    ) -> Statement:
        """Return a statement about another unit than that of the mechanism."""
        release = self.terms.release
        return Statement(
            unit=unit,
            mechanism=self.mechanism.name,
            adjacency=adjacency,
            adversary=self.mechanism.adversary,
            released=self.mechanism.released,
            epsilon=found,
            epsilon_rdp=None,
            delta=delta,
            accountant="pld",
            noise_multiplier=release.noise_std / sensitivity,
            clip=self.mechanism.clip,
            sampling_rate=release.sampling_rate,
            num_releases=sum(each.count for each in self._file.ledger.releases(worst)),
            assumptions=self._assumptions(),
        )

    def _assumptions(self) -> tuple[str, ...]:
        setting, seeded = self._setting, self.mechanism.noise == "reproducible"
        more = {
            "loss and other training metrics are outside the guarantee": self.shows_metrics,
            "scores of the encoder are computed on the clients' examples and are outside it": setting.evaluates,
            f"rounds are chosen by such a score ({setting.chooses})": setting.chooses is not None,
            "the encoder that training began with was made without these examples": setting.begins_trained,
            "the server's own labelled examples are not protected": setting.server_trains,
            "a round that is made again after a kill has the same answers": seeded and self.mechanism.in_client,
            f"the guarantee is {REPRODUCIBLE}": seeded,
        }
        return (*self.mechanism.assumptions(), *(text for text, holds in more.items() if holds))


def _kept_key(path: Path) -> NoiseKey:
    """Return the key in a file that only its owner reads; a run that begins makes it."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(NoiseKey.fresh().secret)
            stream.flush()
            os.fsync(stream.fileno())
    return NoiseKey(path.read_bytes())
