"""Noise and secret coins: streams of a key that nobody without it can draw again."""

import hashlib
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedssl.seeding import derive

REPRODUCIBLE = "void against anyone who knows the seed, from which the noise is drawn"


@dataclass(frozen=True, slots=True, repr=False)
class NoiseKey:
    """What noise is drawn from; it is never printed.

    Attributes:
        secret: 32 bytes.
    """

    secret: bytes

    @classmethod
    def from_seed(cls, seed: int) -> "NoiseKey":
        """Return the key of a run that can be repeated to the bit."""
        return cls(hashlib.sha256(f"noise {derive(seed, 'noise')}".encode()).digest())

    @classmethod
    def fresh(cls) -> "NoiseKey":
        """Return a key that nobody knows."""
        return cls(secrets.token_bytes(32))

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without telling the key."""
        return hashlib.sha256(b"fingerprint" + self.secret).hexdigest()[:16]

    def generator(self, *path: int | str) -> np.random.Generator:
        """Return the generator of the stream `path`, e.g. ("client", round)."""
        digest = hashlib.sha256(self.secret + repr(path).encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))

    def normal(self, std: float, shape: tuple[int, ...], *path: int | str) -> NDArray[np.float64]:
        """Return Gaussian noise of the stream `path`, in double precision."""
        return self.generator(*path).normal(0.0, std, shape) if std > 0 else np.zeros(shape)
