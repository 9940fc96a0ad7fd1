"""A lower bound on the epsilon of a unit, from canaries that were planted where its mechanism adds noise."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedssl.errors import ConfigError
from fedssl.privacy.audit.attack import Attack, attack
from fedssl.privacy.audit.claims import Claim, Guesses
from fedssl.privacy.audit.one_run import each_way, guess
from fedssl.privacy.planted import Planting
from fedssl.report.rundir import PLANTED


@dataclass(frozen=True, slots=True)
class PlantedAudit:
    """What the noised sums of a run show to whoever sees each of them.

    Attributes:
        unit: Of the mechanism.
        claim: Upper and lower bounds on the epsilon of one unit that is there or not.
        attack: What the evidence tells of the coins.
        guesses: What it guesses of them.
    """

    unit: str
    claim: Claim
    attack: Attack
    guesses: Guesses

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON values."""
        (correct,) = self.guesses.correct.values()
        return {
            "unit": self.unit,
            **self.claim.to_dict(),
            **self.attack.to_dict(),
            "canaries": self.guesses.num_canaries,
            "guesses": self.guesses.num_guesses,
            "correct": correct,
        }


def audit_planted(
    planting: Planting, run_dir: Path, statements: Sequence[Mapping[str, Any]] | None, seed: int
) -> PlantedAudit:
    """Guess the coins of the planted canaries of a finished run.

    Args:
        planting: Which canaries are there.
        run_dir: Directory of the run.
        statements: Of the run; the first is about the unit of its mechanism.
        seed: Of the bootstrap interval.

    Raises:
        ConfigError: The run wrote no evidence, or too few canaries fell either way to guess any.
    """
    path = run_dir / PLANTED
    if not path.exists():
        raise ConfigError(f"{run_dir}: has no {PLANTED}, though canaries.directions={planting.number}")
    by_scope = json.loads(path.read_text(encoding="utf-8"))
    evidence = np.concatenate([np.zeros(0), *(np.array(values) for values in by_scope.values())])
    included = np.concatenate([np.zeros(0, np.bool_), *(planting.included(scope) for scope in by_scope)])
    number = each_way(len(evidence))
    if not number or included.all() or not included.any():
        what = f"{len(evidence)} canaries were planted in all, too few to guess; take more of them"
        raise ConfigError(f"canaries.directions={planting.number}: {what}")
    num_guesses, correct = guess(evidence, included, number, number)
    guesses = Guesses(len(evidence), num_guesses, {"planted": correct})
    statement = (statements or [{}])[0]
    epsilon, delta = statement.get("epsilon"), float(statement.get("delta") or 0.0)
    claim = guesses.claim(str(statement.get("mechanism", "none")), epsilon, delta)
    found = attack(evidence[included], evidence[~included], seed=seed)
    return PlantedAudit(str(statement.get("unit", "none")), claim, found, guesses)
