"""One-run audits of every mechanism, as it is and with a tenth of its noise (Steinke 2023).

    python -m benchmarks.audit_battery   # two minutes on a core

"Privacy Auditing with One (1) Training Run". Each canary is a unit (a client, an example, a cell) that pushes a
direction of its own as far as the clip lets it, and is there by a fair coin. The attack sees every release that the
ledger is charged with, and weighs what it shows of each canary by the likelihood ratio of there or not. It guesses a
tenth of the canaries to be there and a tenth not to be. Local privacy replaces: its canary pushes one way or the other.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.measure import arguments, report
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.account import Account
from fedssl.privacy.audit.one_run import guess, one_run_bound
from fedssl.privacy.client import Client, NoisedMean
from fedssl.privacy.contract import PrivacyContract
from fedssl.privacy.example import Cell, Example, Sampled
from fedssl.privacy.local import Local
from fedssl.privacy.mechanism import Mechanism, Setting
from fedssl.privacy.noise import NoiseKey
from fedssl.privacy.planted import log_ratio
from fedssl.seeding import derive, generator, uniforms
from fedssl.training.loop import Examples, LocalRule, Schedule, Stream
from fedssl.training.private_loop import PrivateSteps, fit_privately
from fedssl.wire import LocalUpdate

DELTA = 1e-5
PUSH = 10.0  # norm of what a canary adds before it is clipped to 1
RATE = 0.2  # of those that sample
CELL_SIZE = 2
GUESSED = 10  # one canary of so many is guessed to be there, and as many not to be
WEIGHT = "backbone.weight"
Seen = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Case:
    """A mechanism, and how often it releases.

    Attributes:
        name: In the table.
        mechanism: But for its noise.
        multipliers: Of the noise that is claimed.
        rounds: Rounds, or epochs of the one round where a client makes noised steps.
    """

    name: str
    mechanism: Mechanism
    multipliers: tuple[float, ...]
    rounds: int = 4


_FULL, _SAMPLED = (2.0, 4.0, 8.0), (1.5, 3.0, 6.0)
CASES = (
    Case("client", Client(noise_multiplier=1.0, delta=DELTA), _FULL),
    Case("client, clip moves", Client(noise_multiplier=1.0, delta=DELTA, quantile=0.5), _FULL),
    Case("client, sampled", Client(noise_multiplier=1.0, delta=DELTA, sampling_rate=RATE), _SAMPLED, 20),
    Case("local", Local(noise_multiplier=1.0, delta=DELTA), _FULL),
    Case("example", Example(noise_multiplier=1.0, delta=DELTA, sampling_rate=1.0), _FULL),
    Case("example, sampled", Example(noise_multiplier=1.0, delta=DELTA, sampling_rate=RATE), _SAMPLED),
    Case("cell", Cell(noise_multiplier=1.0, delta=DELTA, sampling_rate=1.0, cell_size=CELL_SIZE), _FULL),
)


class WeakKey(NoiseKey):
    """Adds a tenth of the noise that is asked for."""

    def normal(self, std: float, shape: tuple[int, ...], *path: int | str) -> NDArray[np.float64]:
        """Return too little noise."""
        return NoiseKey.normal(self, std / 10, shape, *path)


class Along(Objective):
    """Each example pulls its own weight up, always as hard."""

    contract = PrivacyContract("per_example")

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return nothing."""
        return {}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return minus the mean answer."""
        return Step(-PUSH * model["backbone"](batch.views[0].flatten(1)).mean(), {})


class OneHot:
    """Example i shows a single bright pixel, that of its unit."""

    classes = ("",)

    def __init__(self, units: NDArray[np.int64]) -> None:
        self.units = units
        self.labels = np.zeros_like(units)
        self.owners = ("",) * len(units)

    def __len__(self) -> int:
        return len(self.units)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels in a row."""
        pixels = np.zeros((1, 1, int(self.units.max()) + 1, 1), np.uint8)
        pixels[0, 0, self.units[index], 0] = 255
        return pixels


class AsItIs:
    """Changes nothing."""

    num_uniforms = 0

    def __call__(self, clips: Tensor, uniforms: NDArray[np.float64], role: Role, ordinal: int) -> Tensor:
        """Return the pixels in [0, 1]."""
        return clips.float() / 255


@dataclass
class Watch(LocalRule):
    """Notes the noised gradient of every step."""

    steps: list[Seen] = field(default_factory=list)

    def correct(self, model: nn.ModuleDict) -> None:
        """Note it."""
        self.steps.append(cast(Tensor, model["backbone"].weight.grad)[0].double().numpy().copy())


@dataclass(frozen=True, slots=True)
class Audit:
    """What an attack on one run shows.

    Attributes:
        epsilon: What the ledger comes to.
        num_guesses: Coins that were guessed.
        num_correct: Guesses that are right.
        lower: What the guesses refute, by confidence.
    """

    epsilon: float
    num_guesses: int
    num_correct: int
    lower: dict[float, float]


def audit(case: Case, multiplier: float, seed: int, num_canaries: int, keys: type[NoiseKey] = NoiseKey) -> Audit:
    """Run a mechanism on canaries and attack what it releases.

    Args:
        case: The mechanism.
        multiplier: Noise that it claims.
        seed: Of the coins and the noise.
        num_canaries: Units, each a canary.
        keys: Draw the noise.
    """
    mechanism = replace(case.mechanism, noise_multiplier=multiplier)
    root = derive(seed, case.name, str(multiplier))
    included = generator(root, "coins").random(num_canaries) < 0.5
    key = keys.from_seed(root)
    steps = isinstance(mechanism, Sampled)
    setting = Setting(
        objective=Along(), model=nn.ModuleDict(), batch_norm="share", augmentation=AsItIs(), procedure=None,
        rounds=1 if steps else case.rounds, epochs=case.rounds if steps else 1,
        num_clients=1 if steps else num_canaries, num_examples=num_canaries,
        cohort=None, fixed_cohort=None, shows_clients=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        account = Account(mechanism, setting, Path(folder), seed, None)
        if isinstance(mechanism, Client):
            seen = _of_clients(mechanism, account, included, key, setting)
        elif isinstance(mechanism, Local):
            seen = _of_messages(mechanism, account, included, key, setting)
        else:
            seen = _of_steps(cast(Sampled, mechanism), account, included, key, setting)
        epsilon = account.epsilon()
    rate = account.terms.release.sampling_rate
    scores = log_ratio(seen, multiplier, rate).sum(axis=0)
    each = num_canaries // GUESSED
    num_guesses, num_correct = guess(scores, included, each, each)
    lower = {
        confidence: one_run_bound(num_canaries, num_guesses, num_correct, account.terms.delta, confidence)
        for confidence in (0.95, 0.99)
    }
    return Audit(math.inf if epsilon is None else epsilon, num_guesses, num_correct, lower)


def _of_clients(client: Client, account: Account, included: NDArray[np.bool_], key: NoiseKey, setting: Setting) -> Seen:
    """Return what the model's change of each round shows of each client, `[rounds, clients]`."""
    number = len(included)
    mean = NoisedMean(client, account.terms, client.rate(setting), number, key, client.clip)
    current: dict[str, NDArray[np.float32]] = {WEIGHT: np.zeros(number, np.float32)}
    seen = []
    for round_number in range(1, setting.rounds + 1):
        cohort, clip = client.draw(mean.rate, number, key, round_number), mean.clip
        account.charge(round_number, cohort)
        present = [partition for partition in cohort if included[partition]]
        released = mean(current, _updates(current, present, round_number), round_number, frozenset(), lambda _: 1)
        new = {WEIGHT: released.arrays[WEIGHT]}
        seen.append((new[WEIGHT].astype(np.float64) - current[WEIGHT]) * mean.rate * number / clip)
        current = new
    return np.stack(seen)


def _updates(current: dict[str, NDArray[Any]], partitions: list[int], round_number: int) -> Iterator[LocalUpdate]:
    for partition in partitions:
        pushed = current[WEIGHT].copy()
        pushed[partition] += PUSH
        yield LocalUpdate(partition, round_number, {WEIGHT: pushed}, 1, {})


def _of_messages(local: Local, account: Account, included: NDArray[np.bool_], key: NoiseKey, setting: Setting) -> Seen:
    """Return what the messages of each round show of each client, `[rounds, clients]`: it pushes up, or down."""
    received = {name: np.zeros((2, 2), np.float32) for name in (WEIGHT, "projector.weight")}
    seen = np.empty((setting.rounds, len(included)))
    for row in range(setting.rounds):
        account.charge(row + 1, range(len(included)))
        for partition, up in enumerate(included):
            trained = {name: np.full_like(array, PUSH if up else -PUSH) for name, array in received.items()}
            sent = local.sent(received, trained, frozenset(), account.terms, key, (partition, row + 1))
            along = sum(float(array.sum()) for array in sent.values()) / math.sqrt(8)  # of eight numbers alike
            seen[row, partition] = along / (2 * local.clip) + 0.5
    return seen


def _of_steps(sampled: Sampled, account: Account, included: NDArray[np.bool_], key: NoiseKey, setting: Setting) -> Seen:
    """Return what each step's noised gradient shows of each unit, `[steps, units]`."""
    number = len(included)
    size = sampled.cell_size if isinstance(sampled, Cell) else 1
    stream = Stream(0, 0, 1)
    # whole cells are there or not, so that the others stay as they are
    order = uniforms(stream.seed, "cells", rows=np.arange(number * size), columns=1)[:, 0].argsort(kind="stable")
    units = np.empty(number * size, np.int64)
    units[order] = np.arange(number * size) // size
    examples = Examples(OneHot(units), np.flatnonzero(included[units]), AsItIs())
    model = nn.ModuleDict({"backbone": nn.utils.skip_init(nn.Linear, number, 1, bias=False)})
    nn.init.zeros_(cast(Tensor, model["backbone"].weight))
    watch, schedule = Watch(), Schedule(setting.epochs, 256, 1.0, 0.0)
    account.charge(1, [0])
    private = PrivateSteps(sampled, account.terms, key)
    fit_privately(model, setting.objective, examples, _sgd, schedule, stream, private, watch)
    expected = sampled.sampling_rate * int(included.sum())
    return np.stack([-step * expected / sampled.clip for step in watch.steps])


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1.0)


def main() -> None:
    """Audit and write the table."""
    chosen = arguments(__doc__, seeds=4, canaries=4000)
    torch.set_num_threads(1)
    rows, honest, weak = [], [], []
    for case in CASES:
        for multiplier in case.multipliers:
            own, short = (
                [audit(case, multiplier, seed, chosen["canaries"], keys) for seed in range(chosen["seeds"])]
                for keys in (NoiseKey, WeakKey)
            )
            honest += own
            weak += short
            rows.append(
                [case.name, f"{multiplier:g}", f"{own[0].epsilon:.3f}"]
                + [f"{np.mean([each.num_correct / each.num_guesses for each in some]):.3f}" for some in (own, short)]
                + [_bounds(own, 0.95), _bounds(own, 0.99), _bounds(short, 0.99)]
            )
    violations = sum(each.lower[0.99] > each.epsilon for each in honest)
    above = sum(each.lower[0.95] > each.epsilon for each in honest)
    ratio = max(each.lower[0.95] / each.epsilon for each in honest)
    caught = sum(each.lower[0.99] > each.epsilon for each in weak)
    header = ["mechanism", "noise", "epsilon", "right", "right / 10", "bound 95 %", "bound 99 %", "bound 99 % / 10"]
    notes = [
        f"{len(honest)} runs of {chosen['canaries']} canaries, {honest[0].num_guesses} guesses each, delta {DELTA:g}; "
        f'means over {chosen["seeds"]} seeds, the largest in brackets. "/ 10" are the same runs with a tenth of the '
        "noise that they claim. Each run makes 4 releases, those that sample 20, of a fifth of the units each.",
        "",
        f"- bound above the epsilon that is claimed: {violations} at 99 %, {above} at 95 %",
        f"- largest bound at 95 % over epsilon: {ratio:.2f}",
        f"- a tenth of the noise is caught at 99 %: {caught} of {len(weak)}",
    ]
    report("audit_battery", "What audits show of each mechanism", header, rows, notes)


def _bounds(audits: list[Audit], confidence: float) -> str:
    found = [each.lower[confidence] for each in audits]
    return f"{np.mean(found):.3f} ({max(found):.3f})"


if __name__ == "__main__":
    main()
