"""The ledger of a client: it charges itself before it trains, and does not rely on the server to stop in time."""

import json
from dataclasses import asdict, replace
from typing import cast

from flwr.app import ConfigRecord, Context

from fedssl.errors import PrivacyError
from fedssl.privacy.ledger import Ledger, charge_of, client_scope
from fedssl.privacy.mechanism import Mechanism, Terms
from fedssl.privacy.noise import NoiseKey

_RECORD = "ledger"  # of the state: rounds by what each of them was charged


def own_ledger(context: Context) -> Ledger:
    """Return all that this client was charged for in the run; empty before its first round."""
    kept = context.state.config_records.get(_RECORD) or ConfigRecord()
    return Ledger(
        charge_of({**json.loads(values), "round": number})
        for values, rounds in kept.items()
        for number in cast(list[int], rounds)
    )


def charge_self(
    context: Context, mechanism: Mechanism, terms: Terms, partition: int, round_number: int, key: NoiseKey
) -> None:
    """Charge this client for a round that it is about to train; its state has it when this returns.

    A round that comes again is the same release, and is charged once, where its noise is that of the run's seed. Noise
    from a key that is drawn anew is another release.

    Args:
        context: Holds the ledger beside what the client remembers, and outlives a training that fails.
        mechanism: Whose release it is.
        terms: Of the run.
        partition: The client.
        round_number: Of the federation.
        key: What the noise is drawn from.

    Raises:
        PrivacyError: The round would exceed the budget of the run. Nothing is charged.
    """
    repeats = mechanism.noise == "reproducible"
    scope = client_scope(partition)
    charge = mechanism.charge(terms, round_number, scope, key.fingerprint if repeats else "")
    ledger = own_ledger(context)
    if repeats and charge in ledger.charges:
        return
    after = ledger.over(charge, mechanism.budget, terms.delta, mechanism.accountant)
    if after is not None:
        limit = f"the limit is {mechanism.budget}"
        what = f"round {round_number} would come to epsilon {after:.4g} by its own ledger, {limit}"
        raise PrivacyError(f"{scope}: {what}", "PRIV-BUDGET")
    alike = json.dumps(asdict(replace(charge, round=0)))
    kept = context.state.config_records.get(_RECORD) or ConfigRecord()
    rounds = [*cast(list[int], kept.get(alike, [])), round_number]
    context.state[_RECORD] = ConfigRecord({**kept, alike: rounds})
