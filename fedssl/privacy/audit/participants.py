"""Who took part in a round, guessed from the global models that a run kept (Andrew et al. 2024).

"One-shot Empirical Privacy Estimation for Federated Learning". Whoever has a client's examples can train on them from
the model of a round, as the client would have done, and see whether the next model went the same way. The procedure and
its draws are known here, as they are to no attacker outside; the noise of a mechanism is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedssl import checkpoint
from fedssl.errors import ConfigError
from fedssl.objectives.objective import Batch
from fedssl.privacy.audit.attack import Attack, attack
from fedssl.privacy.audit.clients import participation, shares, source_accuracy
from fedssl.privacy.audit.membership import negative_loss
from fedssl.privacy.audit.replay import guessed, moves, trained, vector
from fedssl.seeding import derive, generator
from fedssl.training.loop import Examples, Stream, make_batch
from fedssl.workspace import Workspace

OWN, ALL = "its examples known", "all examples known"
_ASKED = 200  # examples, of all clients together, whose owner is guessed


@dataclass(frozen=True, slots=True)
class Sources:
    """How often the owner of an example is guessed, by whoever sees the clients' own models (Hu et al. 2021).

    Attributes:
        accuracy: Share of examples whose owner's model has the least loss.
        num_clients: A guess is right by chance once in so many.
        num_examples: That were asked for.
    """

    accuracy: float
    num_clients: int
    num_examples: int


@dataclass(frozen=True, slots=True)
class Participants:
    """What the global models tell of the cohorts.

    Attributes:
        rounds: Whose cohort was guessed: those with a kept model before and after them.
        included: `[client_rounds]` whether the client was in the round.
        scores: `[client_rounds]` how far the model went in the direction of a client's own update, for "its examples
            known", and in it and no other client's, for "all examples known".
        attacks: What the scores tell, by the same names.
        sources: Who owns an example, guessed in the last of these rounds; None where the loss is not of single
            examples, or clients noise what they send.
    """

    rounds: tuple[int, ...]
    included: NDArray[np.bool_]
    scores: Mapping[str, NDArray[np.float64]]
    attacks: Mapping[str, Attack]
    sources: Sources | None

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON values."""
        sources = self.sources and {name: getattr(self.sources, name) for name in self.sources.__slots__}
        attacks = {
            name: {**each.to_dict(), "scores": self.scores[name].tolist()} for name, each in self.attacks.items()
        }
        counts = {"rounds": self.rounds, "client_rounds": len(self.included), "included": self.included.tolist()}
        return {**counts, "attacks": attacks, "sources": sources}


def participants(workspace: Workspace, run_dir: Path, seed: int = 0) -> Participants:
    """Guess the cohort of each round of a run that can be guessed; the workspace's model is left as it falls.

    The updates of all clients in a round are held at once.

    Args:
        workspace: Of the run, whose clients' examples are here.
        run_dir: Its directory, with the models of consecutive rounds; the untrained one is there in any case.
        seed: Root of what the audit draws.

    Raises:
        ConfigError: Too few models were kept, everybody or nobody is in every round, or a client cannot be trained
            again.
    """
    folder = run_dir / checkpoint.FOLDER
    rounds = guessed(folder)
    clients = [client for client in range(workspace.num_clients) if len(workspace.indices(client))]
    cohorts = [cohort for *_, cohort in moves(workspace, folder)]
    there = np.array([client in cohort for cohort in cohorts for client in clients])
    if there.all() or not there.any():
        who = "every client" if there.all() else "no client"
        cohort = "null" if workspace.config.cohort is None else workspace.config.cohort
        raise ConfigError(f"cohort={cohort}: {who} is in every round, so there is nothing to guess")
    asked = _asked(workspace, clients, seed)
    scores: dict[str, list[float]] = {OWN: [], ALL: []}
    losses: list[NDArray[np.float64]] = []
    for number, before, after, _ in moves(workspace, folder):
        movement, updates = vector(workspace, before, after), []
        for client in clients:
            updates.append(vector(workspace, before, trained(workspace, before, number, client)))
            if asked is not None and number == rounds[-1]:
                losses.append(-negative_loss(workspace.model, workspace.objective, [asked[0]]))
        scores[OWN] += [participation(movement[None], update[None]) for update in updates]
        scores[ALL] += shares(movement, np.stack(updates)).tolist()
    values = {name: np.array(own) for name, own in scores.items()}
    attacks = {name: attack(own[there], own[~there], seed=seed) for name, own in values.items()}
    sources = None
    if asked is not None:
        accuracy = source_accuracy(np.array(losses), asked[1])
        sources = Sources(accuracy, len(clients), len(asked[1]))
    return Participants(rounds, there, values, attacks, sources)


def _asked(workspace: Workspace, clients: Sequence[int], seed: int) -> tuple[Batch, NDArray[np.int64]] | None:
    """Return examples and the places of their owners in `clients`; None where their owners cannot be told."""
    mechanism = workspace.mechanism
    hidden = mechanism is not None and mechanism.in_client
    if hidden or workspace.objective.contract.coupling != "per_example":
        return None
    each = max(1, _ASKED // len(clients))
    parts, labels = [], []
    for client in clients:
        own = workspace.indices(client)
        rng = generator(seed, "audit", "sources", client)
        places = rng.choice(len(own), min(each, len(own)), replace=False)
        parts.append(own[places])
        labels.append(workspace.labels(client)[places])
    augmentation = workspace.augmentation
    examples = Examples(workspace.splits.train, np.concatenate(parts), augmentation, np.concatenate(labels))
    stream = Stream(derive(seed, "audit", "sources"), 0, 0)
    owners = np.repeat(np.arange(len(clients)), [len(part) for part in parts])
    return make_batch(workspace.objective, examples, np.arange(len(owners)), stream, 0, workspace.device), owners
