"""Attacks that other runs teach, whose coins are known: EncoderMI (Liu et al. 2021) and LiRA (Carlini et al. 2022).

A shadow run has the settings of the run that is attacked and other coins for its canaries, so that it shows what an
encoder looks like that had an example, and one that had not, and knows nothing of the coins that are guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl.config import RunConfig, differing_keys
from fedssl.errors import ConfigError
from fedssl.privacy.audit import lira
from fedssl.privacy.audit.membership import SetAttack, VectorAttack, best_threshold, mean_cosine
from fedssl.privacy.audit.sslmem import pairs

THRESHOLD, VECTOR, SET = "EncoderMI-T", "EncoderMI-V", "EncoderMI-S"
ONLINE, OFFLINE = "LiRA online", "LiRA offline"
_MAY_DIFFER = ("canaries.coins", "canaries.flipped", "seed")
_LEAST = 2  # shadows with an example, and without it, that LiRA fits a distribution to
_FEWEST = 20  # canaries of a shadow, of which EncoderMI-V holds a tenth out, one of each kind at least


@dataclass(frozen=True, slots=True)
class Shadow:
    """What a run with known coins tells of its own canaries.

    Attributes:
        indices: `[n]` canaries, among the training examples.
        included: `[n]` whether each was trained on.
        features: `[n, views, dim]` of their views by its encoder.
    """

    indices: NDArray[np.int64]
    included: NDArray[np.bool_]
    features: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Taught:
    """What an attack that was taught on shadows says of the canaries of a run.

    Attributes:
        scores: `[n]`, higher for what looks trained on.
        threshold: Scores from which on it says "trained on"; None where the shadows teach none.
    """

    scores: NDArray[np.float64]
    threshold: float | None

    def accuracy(self, included: NDArray[np.bool_]) -> float | None:
        """Return the mean of both rates of right answers at the threshold, which has not seen these coins."""
        if self.threshold is None:
            return None
        says = self.scores >= self.threshold
        return float((says[included].mean() + (~says[~included]).mean()) / 2)


def taught(
    indices: NDArray[np.int64], features: NDArray[np.float32], shadows: Sequence[Shadow], seed: int = 0
) -> dict[str, Taught]:
    """Return what each attack says of canaries.

    EncoderMI learns from the canaries of all shadows together. LiRA takes "alignment" for its score and those shadows
    that have the same canaries; it is left out unless each canary is in two of them and out of two.

    Args:
        indices: `[n]` the canaries whose coins are guessed.
        features: `[n, views, dim]` of their views by the encoder that is attacked.
        shadows: At least one.
        seed: Of the training of the attacks.

    Raises:
        ValueError: The shadows have too few canaries, all of them in, or all of them out.
    """
    members = np.concatenate([shadow.features[shadow.included] for shadow in shadows])
    others = np.concatenate([shadow.features[~shadow.included] for shadow in shadows])
    if min(len(members), len(others)) < 2 or len(members) + len(others) < _FEWEST:
        what = f"at least {_FEWEST} canaries, some in and some out, got {len(members)} in and {len(others)} out"
        raise ValueError(f"shadows must have {what}")
    threshold = best_threshold(mean_cosine(members), mean_cosine(others))
    found = {
        THRESHOLD: Taught(mean_cosine(features), threshold),
        VECTOR: Taught(VectorAttack(members, others, seed=seed)(features), 0.5),
        SET: Taught(SetAttack(members, others, seed=seed)(features), 0.5),
    }
    same = [shadow for shadow in shadows if np.array_equal(shadow.indices, indices)]
    included = np.array([shadow.included for shadow in same], np.bool_).reshape(len(same), len(indices))
    if min(included.sum(axis=0).min(), (~included).sum(axis=0).min()) >= _LEAST:
        target, scores = -pairs(features), np.stack([-pairs(shadow.features) for shadow in same])
        found[ONLINE] = Taught(lira.online(target, scores, included), 0.0)
        found[OFFLINE] = Taught(lira.offline(target, scores, included), None)
    return found


def check_shadow(own: RunConfig, shadow: RunConfig, run_dir: Path, path: Path) -> None:
    """Raise ConfigError unless a run differs from the one that is attacked in its coins, which are not turned ones.

    Args:
        own: Configuration of the run that is attacked.
        shadow: That of the shadow.
        run_dir: Directory of the run.
        path: Directory of the shadow.
    """
    different = [line for line in differing_keys(own.text, shadow.text) if line.partition(":")[0] not in _MAY_DIFFER]
    if different:
        allowed = f"must differ from {run_dir} in {', '.join(_MAY_DIFFER)} alone"
        raise ConfigError(f"shadow={path}: {allowed}, got {'; '.join(different)}")
    if shadow.canaries.coin_seed == own.canaries.coin_seed:
        what = f"has the coins of {run_dir}, or all of them turned, and knows the answer"
        raise ConfigError(f"shadow={path}: {what}; train it with another canaries.coins")
