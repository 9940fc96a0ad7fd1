"""A client's own ledger, which it charges before it trains; a client's most rounds; what a statement does not cover."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from test_local_privacy import setting
from test_private_runs import CELL, CLIENT, LOCAL, TINY, charges, interrupted, ran, rounds

from clients import handlers
from clients.app import client_app
from clients.own_ledger import charge_self, own_ledger
from fedssl.compose import load
from fedssl.errors import PrivacyError
from fedssl.objectives.simclr import SimClr
from fedssl.privacy import accountants
from fedssl.privacy.accounting import Release
from fedssl.privacy.client import Client
from fedssl.privacy.example import Cell
from fedssl.privacy.ledger import Charge, Ledger
from fedssl.privacy.local import Local
from fedssl.privacy.mechanism import Terms
from fedssl.privacy.noise import NoiseKey
from fedssl.simulation.grid import identify, node_context
from fedssl.simulation.local import LocalGrid
from fedssl.simulation.memories import read, write
from fedssl.training.loop import Examples, Stream
from fedssl.training.private_loop import PrivateSteps, _units
from fedssl.wire import TrainTask, write_task
from fedssl.workspace import open_workspace
from simulate import main

KEY = NoiseKey.from_seed(5)
SHARES = (*CLIENT, "privacy.secure_aggregation=true", "privacy.min_survivors=4", "privacy.adjacency=zero_out")
MECHANISMS = {"cell": CELL, "local": LOCAL, "shares": SHARES}


def empty() -> Context:
    return node_context(3, 4, RecordDict())


def message(round_number: int, config: Any) -> Message:  # noqa: ANN401
    """The task of a round, to the client with partition 2."""
    identify()
    task = TrainTask(round_number, 2, config.seed, open_workspace(config).shared(None))
    return Message(write_task(task), 3, MessageType.TRAIN, group_id=str(round_number))


def ledgers(path: Path) -> dict[int, Ledger]:
    """What each client has in its memory beside the last checkpoint."""
    last: dict[int, Path] = {}
    for file in sorted(
        (path / "checkpoints" / "memories").iterdir(), key=lambda file: int(file.stem.partition("-")[2])
    ):
        last[int(file.stem.partition("-")[0])] = file
    return {partition: own_ledger(node_context(1, 1, read(file))) for partition, file in last.items()}


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_ledgers_of_clients_come_to_what_the_server_counts(name: str, tmp_path: Path) -> None:
    ended = ran(tmp_path, *MECHANISMS[name], "rounds=3", "checkpoint.every=1")
    (statement, *_) = ended["privacy"]
    own = ledgers(tmp_path)
    spent = [
        ledger.epsilon(f"client {partition}", statement["delta"], accountant=statement["accountant"])
        for partition, ledger in own.items()
    ]
    assert len(own) == 4
    assert max(spent) == statement["epsilon"]
    if name != "shares":
        written = {(line["scope"], line["round"], line["key"]) for line in charges(tmp_path)}
        assert {(one.scope, one.round, one.key) for ledger in own.values() for one in ledger.charges} == written


def test_a_run_that_goes_on_has_the_ledgers_of_one_that_was_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(tmp_path / "whole", *LOCAL, "rounds=3", "checkpoint.every=1")
    assert main(interrupted(tmp_path / "cut", monkeypatch, *LOCAL)) == 0
    whole, cut = ledgers(tmp_path / "whole"), ledgers(tmp_path / "cut")
    assert {partition: ledger.head for partition, ledger in cut.items()} == {
        partition: ledger.head for partition, ledger in whole.items()
    }


@pytest.mark.parametrize("words", [LOCAL, CELL], ids=["local", "cell"])
def test_a_server_that_asks_one_round_too_often_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    target = [word.replace("privacy.noise_multiplier=1", "privacy.target_epsilon=4") for word in words]
    config = load([*TINY, *target])
    grid = LocalGrid(client_app(lambda _: config), 4)
    for number in (1, 2):
        (reply,) = grid.send_and_receive([message(number, config)])
        assert not reply.has_error()
    (refused,) = grid.send_and_receive([message(3, config)])
    line = refused.error.reason.strip().splitlines()[-1]
    assert "client 2: round 3 would come to epsilon " in line
    assert line.endswith("by its own ledger, the limit is 4 [PRIV-BUDGET]")
    assert len(own_ledger(node_context(3, 4, grid.memories.get(2))).charges) == 2


def test_a_budget_is_that_of_max_epsilon_where_both_are_given() -> None:
    assert Local(noise_multiplier=1).budget is None
    assert Local(target_epsilon=3).budget == 3
    assert Local(target_epsilon=3, max_epsilon=5).budget == 5


def charged(noise: Any, *numbers: int) -> Context:  # noqa: ANN401
    context, mechanism = empty(), Local(noise_multiplier=1, noise=noise, delta=1e-5)
    for number in numbers:
        charge_self(context, mechanism, mechanism.terms(setting()), 2, number, KEY)
    return context


def test_the_same_noise_is_charged_once_and_noise_drawn_anew_each_time() -> None:
    """A server that was restarted asks for rounds 2 and 3 again."""
    again = [
        own_ledger(charged(noise, 1, 2, 3, 2, 3)).releases("client 2")[0].count for noise in ("reproducible", "secure")
    ]
    assert again == [3, 5]


def test_noise_of_another_seed_is_charged_on_top() -> None:
    context = charged("reproducible", 1)
    mechanism = Local(noise_multiplier=1, delta=1e-5)
    charge_self(context, mechanism, mechanism.terms(setting()), 2, 1, NoiseKey.from_seed(6))
    assert own_ledger(context).releases("client 2")[0].count == 2


def test_a_secure_client_asked_twice_for_a_round_sends_other_noise() -> None:
    """Under the same noise the difference of two answers would be bare."""
    config = load([*TINY, *LOCAL, "privacy.noise=secure", "optimizer.lr=0"])
    context, sent = empty(), []
    for _ in range(2):
        reply = handlers.train(message(1, config), context, config)
        sent.append(b"".join(bytes(array.data) for array in reply.content.array_records["arrays"].values()))
    assert sent[0] != sent[1]
    assert own_ledger(context).releases("client 2")[0].count == 2


def test_a_client_is_charged_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    context, config = empty(), load([*TINY, *LOCAL])

    def failing(*_: object) -> None:
        assert len(own_ledger(context).charges) == 1
        raise RuntimeError("out of memory")

    monkeypatch.setattr(handlers, "_work", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        handlers.train(message(1, config), context, config)
    assert len(own_ledger(context).charges) == 1


def test_a_client_that_fails_keeps_its_charge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = handlers._work

    def failing(workspace: Any, task: TrainTask, memory: Any, partition: int, *more: Any) -> Any:  # noqa: ANN401
        if partition == 2:
            raise RuntimeError("out of memory")
        return original(workspace, task, memory, partition, *more)

    monkeypatch.setattr(handlers, "_work", failing)
    assert main([*TINY, *LOCAL, "rounds=1", "cohort=4", "quorum=3", f"run_dir={tmp_path}"]) == 0
    assert (tmp_path / "failures" / "round-1-partition-2.txt").exists()
    assert {partition: len(ledger.charges) for partition, ledger in ledgers(tmp_path).items()} == dict.fromkeys(
        range(4), 1
    )


def test_a_refused_round_is_not_charged() -> None:
    """One round costs 4.377."""
    context, mechanism = empty(), Local(noise_multiplier=1, max_epsilon=5, delta=1e-5)
    terms = mechanism.terms(setting())
    charge_self(context, mechanism, terms, 0, 1, KEY)
    with pytest.raises(
        PrivacyError, match=r"client 0: round 2 would come to epsilon .* the limit is 5 \[PRIV-BUDGET\]"
    ):
        charge_self(context, mechanism, terms, 0, 2, KEY)
    assert len(own_ledger(context).charges) == 1


@pytest.mark.parametrize("noise", ["reproducible", "secure"])
def test_a_ledger_of_many_rounds_is_small_in_memory(noise: str, tmp_path: Path) -> None:
    write(tmp_path / "memory", charged(noise, *range(1, 201)).state)
    assert (tmp_path / "memory").stat().st_size < 1000
    assert len(own_ledger(node_context(3, 4, read(tmp_path / "memory"))).charges) == 200


def test_the_slow_accountant_is_asked_only_near_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps at rate 0.1 with multiplier 1 cost 2.855 by pld and 3.442 by rdp."""
    charge = Charge("client 0", 1, "example", "example", "add_remove", Release(1.0, 1.0, 0.1, 10), "k")
    assert Ledger().over(charge, 3.0, 1e-5, "pld") is None
    assert Ledger().over(charge, 2.8, 1e-5, "pld") == pytest.approx(2.855, abs=0.001)

    def slow(*_: object) -> float:
        raise AssertionError("the loose bound was enough")

    monkeypatch.setattr(accountants, "pld_epsilon", slow)
    assert Ledger().over(charge, 3.5, 1e-5, "pld") is None


def test_a_client_that_is_in_a_quarter_of_the_rounds_needs_half_of_the_noise() -> None:
    whole, part = (
        Local(target_epsilon=4, delta=1e-5, max_rounds_per_client=most).terms(setting(rounds=16)) for most in (None, 4)
    )
    assert whole.noise_multiplier == pytest.approx(2 * part.noise_multiplier, rel=3e-4)


def test_a_cap_above_the_rounds_of_the_run_changes_nothing() -> None:
    whole, part = (
        Local(target_epsilon=4, delta=1e-5, max_rounds_per_client=most).terms(setting(rounds=3)) for most in (None, 9)
    )
    assert whole == part


CAPPED = ("privacy=local", "privacy.target_epsilon=4", "privacy.max_rounds_per_client=2", "rounds=9")


def test_no_client_is_asked_more_often_than_it_may_be_and_the_run_ends_when_none_is_left(tmp_path: Path) -> None:
    ended = ran(tmp_path, *CAPPED, "cohort=3")
    attended = [client for one in rounds(tmp_path) for client in one["clients"]]
    assert [attended.count(client) for client in range(4)] == [2, 2, 2, 2]
    assert ended["status"] == "completed"
    assert ended["rounds_completed"] == len(rounds(tmp_path)) in (3, 4)
    what = f"round {ended['rounds_completed'] + 1} needs 1 clients, 0 are not at privacy.max_rounds_per_client yet"
    assert ended["stopped_early"] == f"{what} [PRIV-BUDGET]"
    assert 0.99 * 4 <= ended["privacy"][0]["epsilon"] <= 4


def test_a_run_ends_when_fewer_are_left_than_its_quorum(tmp_path: Path) -> None:
    """Three of four clients a round for two rounds each are eight places: the third round has two of them."""
    ended = ran(tmp_path, *CAPPED, "cohort=3", "quorum=3")
    assert ended["stopped_early"].endswith("[PRIV-BUDGET]")
    assert all(len(one["clients"]) == 3 for one in rounds(tmp_path))


def test_a_capped_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The charges of the round that is made again must not count as rounds before it."""
    whole = ran(tmp_path / "whole", *CAPPED[:-1], "rounds=3", "cohort=3")
    assert main(interrupted(tmp_path / "cut", monkeypatch, *CAPPED[:-1], "cohort=3")) == 0
    assert (tmp_path / "cut" / "privacy_ledger.jsonl").read_bytes() == (
        tmp_path / "whole" / "privacy_ledger.jsonl"
    ).read_bytes()
    assert rounds(tmp_path / "cut")[2]["clients"] == rounds(tmp_path / "whole")[2]["clients"]
    assert whole["rounds_completed"] == 3


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_rounds_per_client must be at least 1, got 0"):
        Local(noise_multiplier=1, max_rounds_per_client=0)


def test_examples_of_the_server_are_named_where_it_trains_on_some(tmp_path: Path) -> None:
    said = "the server's own labelled examples are not protected"
    semi = ("objective=fixmatch", "augmentation=semi", "labels=labels_at_server", "rounds=1")
    ended = ran(tmp_path / "some", *LOCAL, *semi)
    assert said in ended["privacy"][0]["assumptions"]
    assert said in ended["privacy"][0]["statement"]
    assert said not in ran(tmp_path / "none", *LOCAL, "rounds=1")["privacy"][0]["assumptions"]


def test_secure_aggregation_names_the_server_and_what_it_sees() -> None:
    plain = Client(noise_multiplier=1)
    shares = Client(noise_multiplier=1, secure_aggregation=True, min_survivors=2, adjacency="zero_out")
    assert plain.adversary == "the other clients and whoever gets the model"
    assert shares.adversary == f"the server (honest but curious: it sees sums alone), {plain.adversary}"
    assert shares.released == f"the sum of updates and {plain.released}"


def cells(indices: np.ndarray, whole: np.ndarray | None) -> list[set[int]]:
    """The examples of each cell of at most four."""
    mechanism = Cell(noise_multiplier=1, cell_size=4)
    steps = PrivateSteps(mechanism, Terms(1.0, 1e-5, Release(1.0, 1.0, 0.1, 1)), KEY, whole)
    units = _units(steps, Examples(None, indices, None), Stream(0, 0, 1))  # type: ignore[arg-type]
    return [set(indices[unit].tolist()) for unit in units]


def test_one_canary_changes_one_cell_alone() -> None:
    whole = np.arange(100, 121)
    before = cells(whole, whole)
    assert [len(cell) for cell in before] == [4, 4, 4, 4, 4, 1]
    for canary in whole:
        after = cells(whole[whole != canary], whole)
        assert after == [cell - {int(canary)} for cell in before]


def test_cells_cut_from_what_is_left_would_shift() -> None:
    whole = np.arange(100, 121)
    first = next(iter(cells(whole, None)[0]))
    changed = [one != other for one, other in zip(cells(whole, None), cells(whole[whole != first], None), strict=False)]
    assert sum(changed) > 1


def test_a_client_and_its_twin_cut_the_same_cells() -> None:
    words = [*TINY, *CELL, "canaries.fraction=0.5"]
    first, twin = (open_workspace(load([*words, f"canaries.flipped={flipped}"])) for flipped in ("false", "true"))
    assert isinstance(first.objective, SimClr)
    for client in range(4):
        assert (first.whole(client) == twin.whole(client)).all()
        assert len(first.indices(client)) < len(first.whole(client))
        assert set(first.indices(client)) != set(twin.indices(client))
