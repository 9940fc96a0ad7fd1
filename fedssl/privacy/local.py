"""Local privacy: every message of a client is clipped and noised before it leaves (Balle & Wang 2018 for the noise)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedssl.arrays import Arrays
from fedssl.privacy.accounting import Adjacency
from fedssl.privacy.mechanism import InClient, Setting, Terms, noised, refuse_scores, refuse_shared_statistics
from fedssl.privacy.noise import NoiseKey


@dataclass(frozen=True, kw_only=True)
class Local(InClient):
    """The change that a client sends is noised as a whole; the server sees nothing else of it.

    The sensitivity is twice the clip: any update may stand in place of any other.

    Raises:
        ValueError: An argument is out of range.
    """

    name: ClassVar[str] = "local"
    unit: ClassVar[str] = "client"
    adversary = "the server and everyone else"
    released = "every message of the client"

    @property
    def neighbours(self) -> Adjacency:
        """One client's data in place of another's."""
        return "replace_one"

    def rate_and_count(self, setting: Setting) -> tuple[float, int]:
        """Return one release a round, without amplification: the server asks the client by name."""
        return 1.0, 1

    def num_units(self, setting: Setting) -> int:
        """Return the clients."""
        return setting.num_clients

    def check(self, setting: Setting) -> None:
        """Raise PrivacyError when something else would be sent."""
        refuse_scores(setting, self.metrics)
        refuse_shared_statistics(setting)

    def sent(
        self,
        received: Arrays,
        trained: Arrays,
        buffers: frozenset[str],
        terms: Terms,
        key: NoiseKey,
        path: Sequence[int],
    ) -> Arrays:
        """Return what came, plus the clipped change, plus noise."""
        return noised(received, trained, buffers, self.clip, terms.release.noise_std, key, ("local", *path))
