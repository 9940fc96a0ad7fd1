"""Client-level privacy at a trusted server: DP-FedAvg with a fixed denominator (McMahan et al. 2018)."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedssl.arrays import Arrays
from fedssl.checks import above, at_least, one_of
from fedssl.errors import PrivacyError
from fedssl.privacy.accounting import Adjacency
from fedssl.privacy.clipping import Change, blocks, change, clip_factor, noised_names, norm
from fedssl.privacy.ledger import SERVER
from fedssl.privacy.mechanism import Mechanism, Setting, Terms, noised, refuse_scores, refuse_shared_statistics
from fedssl.privacy.noise import NoiseKey
from fedssl.privacy.planted import Planted, Planting
from fedssl.privacy.secure_sum import SecureSum
from fedssl.wire import LocalUpdate

LOGGER = logging.getLogger("fedssl")


@dataclass(frozen=True, kw_only=True)
class Client(Mechanism):
    """Each client is drawn by a coin; the server clips every change, and adds noise once, to their sum.

    The sum is divided by what a round expects, never by what came: a client that drops out counts as zero. With a
    `quantile` the clip follows the norms of the updates (Andrew et al. 2021).

    Attributes:
        sampling_rate: Probability with which each client is in a round; None is `cohort` of all clients.
        adjacency: What a neighbouring federation is.
        amplification: "claim" accounts for the secret draw of clients, "none" as if everybody were in every round.
        weight_cap: Clients count by their examples, at most by this many; None counts all the same.
        by_group: Whether each group of tensors ("backbone", "projector", ...) is clipped by itself, all of them to the
            same share of the clip.
        quantile: Share of updates that the clip should leave as they are; None keeps the clip.
        clip_rate: Learning rate of the clip.
        secure_aggregation: Whether each client clips and adds a share of the noise, and the server sees sums alone. A
            neighbouring federation has as many clients: one that is not there brings no share.
        min_survivors: Clients that a sum needs; a smaller one is thrown away. The shares of all but one of them are
            enough noise: a curious client can take its own away.

    Raises:
        ValueError: An argument is out of range.
    """

    name: ClassVar[str] = "client"
    unit: ClassVar[str] = "client"
    at_server: ClassVar[bool] = True
    sampling_rate: float | None = None
    adjacency: Adjacency = "add_remove"
    amplification: Literal["claim", "none"] = "claim"
    weight_cap: float | None = None
    by_group: bool = False
    quantile: float | None = None
    clip_rate: float = 0.2
    secure_aggregation: bool = False
    min_survivors: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(get_args(Adjacency), adjacency=self.adjacency)
        one_of(("claim", "none"), amplification=self.amplification)
        above(0, weight_cap=self.weight_cap, clip_rate=self.clip_rate)
        if self.sampling_rate is not None and not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be above 0 and at most 1, got {self.sampling_rate}")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ValueError(f"quantile must be above 0 and below 1, got {self.quantile}")
        if self.quantile is not None and (self.by_group or self.adjacency == "replace_one"):
            raise ValueError(f"quantile must be null with by_group or replace_one, got {self.quantile}")
        if self.secure_aggregation != (self.min_survivors is not None):
            allowed = "a number where secure_aggregation is true, and null where it is not"
            raise ValueError(f"min_survivors must be {allowed}, got {self.min_survivors}")
        at_least(2, min_survivors=self.min_survivors)
        if self.secure_aggregation and self.adjacency == "add_remove":
            allowed = "zero_out or replace_one with secure_aggregation, who is not there brings no noise"
            raise ValueError(f"adjacency must be {allowed}, got {self.adjacency}")
        if self.secure_aggregation and (self.by_group or self.quantile is not None or self.weight_cap is not None):
            raise ValueError("secure_aggregation must be false with by_group, quantile or weight_cap, got true")

    @property
    def in_client(self) -> bool:
        """Whether clients add shares of the noise."""
        return self.secure_aggregation

    @property
    def neighbours(self) -> Adjacency:
        """The adjacency that was asked for."""
        return self.adjacency

    @property
    def takes_planted(self) -> bool:
        """Whether the server noises the sum, and not each client its share."""
        return not self.secure_aggregation

    @property
    def adversary(self) -> str:
        """Everyone but the server, and a curious server too where it sees sums alone."""
        server = "the server (honest but curious: it sees sums alone), " if self.secure_aggregation else ""
        return f"{server}the other clients and whoever gets the model"

    @property
    def released(self) -> str:
        """The model, which with secure aggregation is the sum that the server sees."""
        return f"{'the sum of updates and ' if self.secure_aggregation else ''}the global model of every round"

    def rate(self, setting: Setting) -> float:
        """Return the probability with which each client is in a round."""
        if self.sampling_rate is not None:
            return self.sampling_rate
        return 1.0 if setting.cohort is None else setting.cohort / setting.num_clients

    def rate_and_count(self, setting: Setting) -> tuple[float, int]:
        """Return one release a round."""
        return (self.rate(setting) if self.amplification == "claim" else 1.0), 1

    def terms(self, setting: Setting) -> Terms:
        """Return the noise and the delta of a run; ValueError where an adaptive clip leaves no noise for the update."""
        terms = super().terms(setting)
        update_multiplier(terms.noise_multiplier, self.count_noise(self.rate(setting), setting.num_clients))
        return terms

    def count_noise(self, rate: float, num_clients: int) -> float | None:
        """Return the standard deviation of the noise on the count of unclipped updates; None where none is counted."""
        return None if self.quantile is None else rate * num_clients / 20

    def num_units(self, setting: Setting) -> int:
        """Return the clients."""
        return setting.num_clients

    def check(self, setting: Setting) -> None:
        """Raise PrivacyError when clients are not drawn by coins alone, or statistics of their data would get out."""
        refuse_scores(setting, self.metrics)
        refuse_shared_statistics(setting)
        if self.secure_aggregation and self.amplification == "claim" and self.rate(setting) < 1:
            what = "the server, from which secure aggregation hides updates, knows who takes part; set it to none"
            raise PrivacyError(f"privacy.amplification=claim: {what}", "PRIV-SAMPLER")
        if (self.min_survivors or 0) > setting.num_clients:
            most = f"must be at most the {setting.num_clients} clients"
            raise PrivacyError(f"privacy.min_survivors={self.min_survivors}: {most}", "PRIV-SAMPLER")
        if setting.fixed_cohort is not None and self.amplification == "claim" and self.rate(setting) < 1:
            what = f"{setting.fixed_cohort} restricts who can be drawn; set privacy.amplification=none"
            raise PrivacyError(f"privacy.amplification=claim: {what}", "PRIV-SAMPLER")
        if self.sampling_rate is not None and setting.cohort is not None:
            LOGGER.warning(
                "cohort=%s: is not used, privacy.sampling_rate=%s draws each client by itself",
                setting.cohort,
                self.sampling_rate,
            )

    def assumptions(self) -> tuple[str, ...]:
        """Return what must be true for the guarantee to hold."""
        drawn = ("who takes part in a round is drawn in secret and not released",)
        trusted = "the server clips, sums and noises honestly"
        if self.secure_aggregation:
            trusted = (
                "every client that answers clips and adds its share of the noise, the server sees sums alone "
                "(simulated), and whoever looks knows the share of at most one client"
            )
        return (
            trusted,
            "the number of clients is public",
            *(drawn if self.amplification == "claim" and self.sampling_rate != 1 else ()),
            *(("the examples of each client, up to the cap, are public",) if self.weight_cap is not None else ()),
        )

    def sent(
        self,
        received: Arrays,
        trained: Arrays,
        buffers: frozenset[str],
        terms: Terms,
        key: NoiseKey,
        path: Sequence[int],
    ) -> Arrays:
        """Return what came, the clipped change and a share of the noise: all but one of the survivors' are enough."""
        std = terms.release.noise_std / math.sqrt(max(1, (self.min_survivors or 2) - 1))
        return noised(received, trained, buffers, self.clip, std, key, ("share", *path))

    def draw(self, rate: float, num_clients: int, key: NoiseKey, round_number: int) -> list[int]:
        """Return the partitions of a round, each drawn by its own coin; there may be none."""
        coins = key.generator("cohort", round_number).random(num_clients)
        return [int(partition) for partition in np.flatnonzero(coins < rate)]


@dataclass
class NoisedMean:
    """The mean that a server may release, and the clip as it moves.

    Attributes:
        mechanism: The rule.
        terms: Its noise.
        rate: Probability with which each client is in a round.
        num_clients: Of the federation.
        key: What noise is drawn from.
        clip: The bound of the next round.
        planting: Canaries that are clients too; None plants none.
        attempt: Told the round and a digest of what is noised, says how often other sums of that round were released:
            under the same noise their difference would show.
    """

    mechanism: Client
    terms: Terms
    rate: float
    num_clients: int
    key: NoiseKey
    clip: float
    planting: Planting | None = None
    attempt: Callable[[int, str], int] = lambda round_number, digest: 0
    planted: Planted | None = field(default=None, init=False)

    def __call__(
        self,
        current: Arrays,
        updates: Iterator[LocalUpdate],
        round_number: int,
        buffers: frozenset[str],
        num_examples: Callable[[int], int],
    ) -> LocalUpdate:
        """Return the noised mean of all clients as the update of one; buffers are as they were.

        Args:
            current: The global arrays.
            updates: Those that came, one at a time.
            round_number: Names the noise.
            buffers: Names that no optimizer trains.
            num_examples: Returns the public number of examples of a partition.
        """
        names = noised_names(current, buffers)
        if self.mechanism.secure_aggregation:
            return self._of_shares(current, updates, round_number, names)
        sums: dict[str, NDArray[np.float64]] = {name: np.zeros(current[name].shape) for name in names}
        below = 0.0
        for update in updates:
            below += self._add(sums, change(update.arrays, current, names), self._weight(update.num_examples))
        cap = self.mechanism.weight_cap
        whole = (
            float(self.num_clients)
            if cap is None
            else float(sum(min(num_examples(partition), cap) for partition in range(self.num_clients)))
        )
        most = self.clip * (1.0 if cap is None else cap)
        std = self._update_noise() * most
        again = self.attempt(round_number, self._digest(sums, below))
        path = (round_number, again) if again else (round_number,)
        planted = self._plant(sums)
        if planted is not None:
            for name, pushed in planted.push(most, self.rate, self.key, round_number).items():
                sums[name] += pushed
        for name, total in sums.items():
            total += self.key.normal(std, total.shape, "client", *path, name)
        if planted is not None:
            planted.watch(sums, most, std, self.rate)
        arrays = dict(current)
        for name, total in sums.items():
            arrays[name] = (current[name] + total / (self.rate * whole)).astype(current[name].dtype)
        self._move_clip(below, path)
        return LocalUpdate(0, round_number, arrays, 1, {})

    def _plant(self, sums: Change) -> Planted | None:
        """Return the canaries, planted when the names and shapes of the tensors are first known."""
        if self.planting is not None and self.planted is None:
            shapes = {name: total.shape for name, total in sums.items()}
            self.planted = self.planting.plant(SERVER, shapes, by_group=self.mechanism.by_group)
        return self.planted

    def _of_shares(
        self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int, names: Sequence[str]
    ) -> LocalUpdate:
        """Return the mean of updates that bring their noise; nothing moves where too few came."""
        total, number = SecureSum({name: current[name].shape for name in names}), 0
        for update in updates:
            total.add(change(update.arrays, current, names))
            number += 1
        arrays = dict(current)
        if number >= (self.mechanism.min_survivors or 0):
            for name, values in total.result().items():
                arrays[name] = (current[name] + values / (self.rate * self.num_clients)).astype(current[name].dtype)
        return LocalUpdate(0, round_number, arrays, 1, {})

    def _weight(self, num_examples: int) -> float:
        cap = self.mechanism.weight_cap
        return 1.0 if cap is None else min(float(num_examples), cap)

    def _add(self, sums: dict[str, NDArray[np.float64]], moved: dict[str, NDArray[np.float64]], weight: float) -> float:
        """Add a clipped change in place, and return a half where the clip left it as it was, else minus a half."""
        parts = blocks(sums) if self.mechanism.by_group else [tuple(sums)]
        bound = self.clip / math.sqrt(len(parts))
        whole = True
        for part in parts:
            length = norm({name: moved[name] for name in part})
            factor = clip_factor(length, bound)
            whole = whole and length <= bound
            if factor > 0:
                for name in part:
                    moved[name] *= weight * factor
                    sums[name] += moved[name]
        return 0.5 if whole else -0.5

    def _update_noise(self) -> float:
        """Return the multiplier of the update: with an adaptive clip the count takes its part of the noise."""
        counted = self.mechanism.count_noise(self.rate, self.num_clients)
        return update_multiplier(self.terms.release.noise_std / self.mechanism.clip, counted)

    def _digest(self, sums: Change, below: float) -> str:
        """Return what tells sums apart and tells nobody without the key anything of them."""
        digest = hashlib.blake2b(repr(below).encode(), digest_size=16, key=self.key.secret)
        for total in sums.values():
            digest.update(np.ascontiguousarray(total).data)
        return digest.hexdigest()

    def _move_clip(self, below: float, path: tuple[int, ...]) -> None:
        std = self.mechanism.count_noise(self.rate, self.num_clients)
        if self.mechanism.quantile is None or std is None:
            return
        noise = float(self.key.normal(std if self.terms.noise_multiplier else 0.0, (), "count", *path))
        share = (below + noise) / (self.rate * self.num_clients) + 0.5
        self.clip *= math.exp(-self.mechanism.clip_rate * (share - self.mechanism.quantile))


def update_multiplier(total: float, count_noise: float | None) -> float:
    """Return the multiplier of the update's noise, so that it and a noised count come to `total` together.

    Args:
        total: Multiplier that the ledger is charged with.
        count_noise: Standard deviation of the noise on the count; None counts nothing.

    Raises:
        ValueError: The count alone tells more than `total` allows.
    """
    if count_noise is None or total == 0:
        return total
    if total >= 2 * count_noise:
        raise ValueError(f"noise_multiplier must be below {2 * count_noise:.4g} with a quantile, got {total:.4g}")
    return float((total**-2 - (2 * count_noise) ** -2) ** -0.5)
