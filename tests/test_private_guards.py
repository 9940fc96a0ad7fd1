"""Guards of private runs that nothing else watches: who is asked and charged, when, at which rate, and what is sent."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import batch_of
from federation import INITIAL, Heard
from test_client_ledger import SHARES, ledgers, message
from test_client_privacy import CURRENT, K, mean_of, merged, setting
from test_local_privacy import AsIs, Dots, encoder
from test_private_runs import CELL, CLIENT, EXAMPLE, LOCAL, TINY, charges, ran, rounds
from test_replies import CLIENTS, Mutating
from torch import nn

from clients import handlers
from clients.app import client_app
from clients.own_ledger import own_ledger
from fedssl.compose import load
from fedssl.errors import PrivacyError
from fedssl.models.bundle import build_bundle
from fedssl.models.image import ImageEncoder
from fedssl.objectives.objective import Population
from fedssl.objectives.rotnet import RotNet
from fedssl.privacy.account import Account
from fedssl.privacy.accounting import Release, epsilon
from fedssl.privacy.client import Client
from fedssl.privacy.example import Cell, Example, Sampled, refuse_mixing
from fedssl.privacy.logit import Logit
from fedssl.privacy.mechanism import Terms
from fedssl.privacy.noise import NoiseKey
from fedssl.simulation.grid import node_context
from fedssl.simulation.parcel import pack, unpack, without_content
from fedssl.simulation.ray_grid import _Worker
from fedssl.training.loop import Examples, Schedule, Stream
from fedssl.training.private_loop import PrivateSteps, fit_privately
from fedssl.wire import LocalUpdate
from simulate import main
from strategies import base
from strategies.averaging import Averaging
from strategies.base import Plan

# who is asked, and what the ledger counts


def test_everyone_whom_coins_drew_is_asked_however_small_the_cohort(tmp_path: Path) -> None:
    """Who is left out for somebody else moves the sum with him: by two clips."""
    heard, run = Heard(), setting(num_clients=CLIENTS, rounds=1, cohort=1)
    account = Account(Client(noise_multiplier=1.0, sampling_rate=1.0), run, tmp_path, 0, None)
    plan = Plan(1, 0, CLIENTS, 1, None, num_examples=lambda partition: partition + 1, account=account)
    Averaging().start(Mutating(None), INITIAL, plan, heard, frozenset({"backbone.n"}))
    assert [sorted(record.clients) for record in heard.records] == [list(range(CLIENTS))]


@pytest.mark.parametrize("make", [Example, Cell, Logit])
def test_the_ledger_counts_the_rate_of_the_coins_where_it_is_not_one_over_a_number(make: type[Sampled]) -> None:
    assert make(noise_multiplier=1.0, sampling_rate=0.7).rate_and_count(setting(epochs=3)) == (0.7, 4)


def test_the_ledger_counts_the_rate_of_cohorts() -> None:
    assert Client(noise_multiplier=1.0).rate_and_count(setting(cohort=70)) == (0.7, 1)


@pytest.mark.parametrize("words", [CLIENT, LOCAL], ids=["client", "local"])
def test_a_round_is_charged_before_any_client_trains(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, known = handlers._work, []

    def noted(*args: Any) -> Any:  # noqa: ANN401
        known.append((args[1].round, max(charge["round"] for charge in charges(tmp_path / "run"))))
        return work(*args)

    monkeypatch.setattr(handlers, "_work", noted)
    ran(tmp_path / "run", *words)
    assert set(known) == {(1, 1), (2, 2)}


def test_who_leaves_in_the_middle_of_a_round_is_charged_for_it(tmp_path: Path) -> None:
    ran(tmp_path, *LOCAL, "availability=dropout", "availability.dropout=0.5", "quorum=1", "rounds=3")
    for one in rounds(tmp_path):
        asked = {*one["clients"], *(failure["partition"] for failure in one["absent"])}
        paid = {charge["scope"] for charge in charges(tmp_path) if charge["round"] == one["round"]}
        assert paid == {f"client {partition}" for partition in asked}
    assert any(one["absent"] for one in rounds(tmp_path))


def test_the_epsilon_of_a_round_is_of_whoever_spent_most(tmp_path: Path) -> None:
    ended = ran(tmp_path / "run", *EXAMPLE, "cohort=2", "rounds=3")
    paid = [charge["scope"] for charge in charges(tmp_path / "run")]
    assert max(map(paid.count, paid)) > min(map(paid.count, paid))
    assert rounds(tmp_path / "run")[-1]["epsilon"] == ended["privacy"][0]["epsilon"]


def test_an_example_of_a_client_is_quoted_as_its_replacement(tmp_path: Path) -> None:
    client, example = ran(tmp_path / "run", *CLIENT)["privacy"]
    made = [Release(1.0, 1.0, 1.0, 2)]
    assert (example["unit"], example["adjacency"], example["noise_multiplier"]) == ("example", "replace_one", 0.5)
    assert example["epsilon"] == epsilon(made, example["delta"], adjacency="replace_one") > client["epsilon"]


# the ledger that a client keeps, on workers


def test_workers_of_ray_hand_the_ledger_on_also_when_the_client_fails() -> None:
    config = load([*TINY, *EXAMPLE, "optimizer.lr=1e40"])
    state = None
    for number in (1, 2):  # a worker of its own for each round
        worker, asked = _Worker(lambda: client_app(lambda _: config), 4, 0.0), message(number, config)
        (reply, keeps), _, state = worker.run(without_content(asked), pack(asked.content), state)
        assert reply.has_error()
        assert keeps
        assert state is not None
        ledger = own_ledger(node_context(3, 4, unpack(state)))
        assert [charge.round for charge in ledger.charges] == list(range(1, number + 1))


def test_ledgers_of_clients_on_ray_come_to_what_the_server_counts(tmp_path: Path) -> None:
    ran(tmp_path, *LOCAL, "rounds=2", "checkpoint.every=1", "engine=ray", "engine.num_workers=2")
    written = {(line["scope"], line["round"], line["key"]) for line in charges(tmp_path)}
    own = ledgers(tmp_path).values()
    assert {(one.scope, one.round, one.key) for ledger in own for one in ledger.charges} == written


# what is refused


def test_a_group_norm_of_single_channels_is_refused() -> None:
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(4, 4))})
    with pytest.raises(PrivacyError, match=r"backbone\.1 has groups of one channel.*\[PRIV-BN\]"):
        refuse_mixing(setting(model=model), "example")


def test_a_layer_that_changes_its_input_in_place_is_refused_in_words() -> None:
    body = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, 2, 1))
    model = build_bundle(lambda: ImageEncoder(body, 4, (0.5,), (0.25,)), RotNet(), 0, Population(2, 1))
    batch = batch_of(torch.rand(2, 1, 1, 8, 8))
    with pytest.raises(PrivacyError, match=r"privacy.engine=hooks: a layer changes its input in place.*PRIV-INPLACE"):
        Example(noise_multiplier=1.0, engine="hooks").try_out(model, lambda _: batch, RotNet())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((*SHARES, "cohort=2"), "from which secure aggregation hides"),
        (
            (*SHARES, "privacy.amplification=none", "privacy.min_survivors=5"),
            "privacy.min_survivors=5: must be at most the 4 clients",
        ),
        ((*CLIENT, "cohort=2", "labelled_rounds=1", "objective=supervised"), "labelled_rounds restricts who can be"),
        ((*CELL, "objective=byol", "model.norm=batch", "batch_norm=local"), "must not be local where a teacher"),
    ],
)
def test_more_that_would_break_a_guarantee_is_refused(
    words: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *words, f"run_dir={tmp_path / 'run'}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.strip().splitlines() if "[PRIV-" in line]
    assert text in line


# what is sent, and the noise on it


def test_a_message_says_how_many_examples_a_client_holds_and_not_how_many_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, read, seen = handlers._work, base.read_sound, []

    def used_few(*args: Any) -> Any:  # noqa: ANN401
        return dataclasses.replace(work(*args), num_examples=3, sent={"more": {"w": np.ones(2)}})

    def noted(*args: Any) -> LocalUpdate:  # noqa: ANN401
        seen.append(read(*args))
        return seen[-1]

    monkeypatch.setattr(handlers, "_work", used_few)
    monkeypatch.setattr(base, "read_sound", noted)
    ran(tmp_path / "run", *LOCAL, "rounds=1")
    assert sorted(update.num_examples for update in seen) == [22, 22, 23, 23]
    assert not any(update.extras for update in seen)


@pytest.mark.parametrize("words", [LOCAL, SHARES], ids=["local", "shares"])
def test_a_message_that_is_noised_is_sent_although_training_diverged(words: tuple[str, ...], tmp_path: Path) -> None:
    """The server must not learn from a missing answer that it did."""
    ended = ran(tmp_path / "run", *words, "optimizer.lr=1e30", "client.batch_size=4")
    assert (ended["failures"], ended["rounds_completed"]) == (0, 2)
    assert [one["clients"] for one in rounds(tmp_path / "run")] == [[0, 1, 2, 3]] * 2


def test_noise_is_added_in_double_precision_at_the_server() -> None:
    arrays = merged(mean_of(noise_multiplier=1.0), [])
    for name in ("backbone.w", "head.t"):
        noise = NoiseKey.from_seed(3).normal(1.0, CURRENT[name].shape, "client", 1, name)
        assert (arrays[name] == CURRENT[name] + noise / K).all()  # to the last bit


def test_noise_is_added_in_double_precision_in_a_step() -> None:
    model = build_bundle(encoder, RotNet(), 0, Population(4, 1)).double()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    mechanism, key = Example(noise_multiplier=1.0, clip=1e-9, sampling_rate=1.0), NoiseKey.from_seed(7)
    fit_privately(
        model,
        RotNet(),
        Examples(Dots(4), np.arange(4), AsIs()),
        lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        Schedule(1, 8, 1.0, 0.0),
        Stream(0, 0, 1),
        PrivateSteps(
            dataclasses.replace(mechanism, sampling_rate=1.0), Terms(1.0, 1e-5, Release(1.0, 1e-9, 1.0, 1)), key
        ),
    )
    for name, value in model.named_parameters():
        noise = torch.from_numpy(key.normal(1.0, tuple(value.shape), 0, 1, 0, name))
        torch.testing.assert_close(before[name] - value, noise / 4, rtol=0, atol=1e-8)  # clips are a billionth
