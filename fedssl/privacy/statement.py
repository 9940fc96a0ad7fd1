"""One sentence per guarantee: what is protected, from whom, in what, how well, and on which assumptions."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from fedssl.report.units import human_epsilon

_NEIGHBOURS = {
    "add_remove": "is there or is not",
    "zero_out": "contributes or contributes zero",
    "replace_one": "is what it is or any other",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """A guarantee, or that there is none.

    Attributes:
        unit: What is protected, as in "example".
        mechanism: What added the noise.
        adjacency: Which data are neighbours: "add_remove", "zero_out" or "replace_one"; any text without a guarantee.
        adversary: Who learns nothing more, as in "the server and the other clients".
        released: What they see, as in "every update of the client".
        epsilon: Of the accountant; None or infinite: no guarantee.
        epsilon_rdp: Of the accountant "rdp", beside it.
        delta: Of the guarantee.
        accountant: Which computed `epsilon`.
        noise_multiplier: Noise over the L2 sensitivity of the noised sum.
        clip: Bound of the L2 norm of what one unit adds.
        sampling_rate: Probability with which a unit takes part in a release; 1: no amplification is claimed.
        num_releases: How many releases epsilon is of.
        assumptions: Without which it does not hold.
        details: More numbers for the reader, JSON values; "reason" says why there is no guarantee.
    """

    unit: str
    mechanism: str
    adjacency: str
    adversary: str
    released: str
    epsilon: float | None
    epsilon_rdp: float | None
    delta: float | None
    accountant: str
    noise_multiplier: float
    clip: float
    sampling_rate: float
    num_releases: int
    assumptions: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)

    def text(self) -> str:
        """Return the sentence; epsilon is rounded up."""
        if self.epsilon is None or self.delta is None or math.isinf(self.epsilon):
            return f"guarantee: none; {self.details.get('reason', 'what is released is not noised')}"
        rdp = "" if self.epsilon_rdp is None else f", {human_epsilon(self.epsilon_rdp)} by rdp"
        part = "of which each has every unit"
        if self.sampling_rate < 1:
            part = f"of which each has a unit with probability {self.sampling_rate:.4g}"
        assuming = f"; assuming that {' and that '.join(self.assumptions)}" if self.assumptions else ""
        return (
            f"guarantee: epsilon {human_epsilon(self.epsilon)} at delta {self.delta:.4g} "
            f"(accountant {self.accountant}{rdp}) for one {self.unit}, which {_NEIGHBOURS[self.adjacency]} "
            f"({self.adjacency}), against {self.adversary}, who see {self.released}; "
            f"{self.num_releases} releases by the mechanism {self.mechanism}, {part}, with "
            f"noise multiplier {self.noise_multiplier:.4g} and clip norm {self.clip:.4g}{assuming}"
        )

    def to_dict(self) -> dict[str, object]:
        """Return JSON values; an infinite epsilon is null, and `statement` holds the sentence."""
        values = {**asdict(self), "assumptions": list(self.assumptions), "details": dict(self.details)}
        finite = {name: None if value in (math.inf, -math.inf) else value for name, value in values.items()}
        return {"statement": self.text(), **finite}


def none_statement(reason: str = "what clients send is what they trained") -> Statement:
    """Return the statement of a run without a guarantee."""
    return Statement(
        unit="none",
        mechanism="none",
        adjacency="none",
        adversary="none",
        released="everything that clients send",
        epsilon=None,
        epsilon_rdp=None,
        delta=None,
        accountant="none",
        noise_multiplier=0.0,
        clip=math.inf,
        sampling_rate=1.0,
        num_releases=0,
        details={"reason": reason},
    )
