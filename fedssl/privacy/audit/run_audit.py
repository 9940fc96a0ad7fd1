"""What attacks on a finished run show, as values and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedssl.privacy.audit import layer_mem, sslmem
from fedssl.privacy.audit.attack import Attack
from fedssl.privacy.audit.claims import Claim, Guesses
from fedssl.privacy.audit.directions import PlantedAudit
from fedssl.privacy.audit.participants import Participants
from fedssl.privacy.audit.recovery import Recovery
from fedssl.report.records import plain


@dataclass(frozen=True, slots=True)
class RunAudit:
    """What attacks on a run show.

    Attributes:
        indices: `[num_canaries]` canaries, among the training examples; none where nobody asked for them.
        included: `[num_canaries]` whether each was trained on.
        scores: `[num_canaries]` of each attack by name: "alignment" is minus the mean distance of an example's views,
            "alignment gained" what training has added to it; the others were taught on shadow runs.
        attacks: What the scores tell, by the same names.
        accuracies: Balanced accuracy at the threshold that shadow runs taught, of the attacks that have one.
        guesses: What they guess of the coins.
        claims: Upper and lower bounds on the epsilon of an example.
        memorisation: SSLMem of candidates (in the run), independents (in its twin), shared and external examples;
            empty without a twin.
        layers: SSLMem of each stage of the encoder, by its name, for all canaries; empty without a twin.
        participants: Who is guessed to have taken part; None where nobody asked.
        recovery: Images that came back from a gradient; None where nobody asked.
        planted: What the noised sums show of planted canaries; None where there are none.
    """

    indices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    included: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_), repr=False)
    scores: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    attacks: Mapping[str, Attack] = field(default_factory=dict)
    accuracies: Mapping[str, float] = field(default_factory=dict)
    guesses: Guesses = field(default_factory=lambda: Guesses(0, 0, {}))
    claims: tuple[Claim, ...] = ()
    memorisation: Mapping[str, sslmem.Memorisation] = field(default_factory=dict)
    layers: Mapping[str, layer_mem.Layer] = field(default_factory=dict)
    participants: Participants | None = None
    recovery: Recovery | None = None
    planted: PlantedAudit | None = None

    @property
    def violated(self) -> bool:
        """Whether an attack shows more than a guarantee of the run allows."""
        planted = () if self.planted is None else (self.planted.claim,)
        return any(claim.violated for claim in (*self.claims, *planted))

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON values."""
        written = ("mean", "top_mean", "ks_statistic", "ks_p_value")
        memorised = {
            name: {**{key: getattr(each, key) for key in written}, "raw": each.raw.tolist()}
            for name, each in self.memorisation.items()
        }
        values = {
            "violated": self.violated,
            "claims": [each.to_dict() for each in self.claims],
            "planted": None if self.planted is None else self.planted.to_dict(),
            "attacks": {name: self._attack(name) for name in self.attacks},
            "sslmem": memorised,
            "layers": {name: asdict(each) for name, each in self.layers.items()},
            "canaries": {"indices": self.indices.tolist(), "included": self.included.tolist()},
            "participation": None if self.participants is None else self.participants.to_dict(),
            "recovery": None if self.recovery is None else self.recovery.to_dict(),
        }
        return {name: plain(value) for name, value in values.items()}

    def _attack(self, name: str) -> dict[str, object]:
        taught = {"accuracy": self.accuracies[name]} if name in self.accuracies else {}
        guessed = {"guesses": self.guesses.num_guesses, "correct": self.guesses.correct[name]}
        return {**self.attacks[name].to_dict(), **taught, **guessed, "scores": self.scores[name].tolist()}
