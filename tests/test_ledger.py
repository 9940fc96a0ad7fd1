import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from fedssl.errors import PrivacyError
from fedssl.privacy.accounting import Release, epsilon
from fedssl.privacy.ledger import EMPTY_HEAD, Charge, Ledger, LedgerFile

DELTA = 1e-3


def charge(round_number: int, scope: str = "server", key: str = "k", multiplier: float = 1.1) -> Charge:
    return Charge(scope, round_number, "client", "client", "add_remove", Release(multiplier, 1.0, 0.1, 1), key)


def cohort(round_number: int, key: str = "k") -> list[Charge]:
    return [charge(round_number, f"client {client}", key) for client in (1, 3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def filled(path: Path, rounds: int = 3) -> LedgerFile:
    file = LedgerFile(path)
    for round_number in range(1, rounds + 1):
        file.charge([charge(round_number)])
    return file


def test_alike_releases_that_follow_each_other_are_one() -> None:
    ledger = Ledger([charge(1), charge(2), charge(3, multiplier=2.0), charge(4)])
    assert [(release.noise_std, release.count) for release in ledger.releases("server")] == [
        (1.1, 2),
        (2.0, 1),
        (1.1, 1),
    ]
    assert len(ledger.charges) == 4
    assert ledger.releases("client 7") == ()
    assert ledger.epsilon("client 7", DELTA) == 0


def test_scopes_are_counted_apart_each_under_its_adjacency() -> None:
    replaced = replace(charge(1, "client 3"), adjacency="replace_one")
    ledger = Ledger([charge(1), replaced, charge(2), replace(replaced, round=2)])
    assert ledger.scopes == ("server", "client 3")
    made = [Release(1.1, 1.0, 0.1, 2)]
    assert ledger.epsilon("server", DELTA) == epsilon(made, DELTA)
    assert ledger.epsilon("server", DELTA, accountant="rdp") == epsilon(made, DELTA, accountant="rdp")
    assert ledger.epsilon("client 3", DELTA) == epsilon(made, DELTA, adjacency="replace_one")


def test_what_protects_something_else_is_not_added_up() -> None:
    ledger = Ledger([charge(1)])
    with pytest.raises(ValueError, match="scope server must be charged for client under add_remove, got"):
        ledger.add(replace(charge(2), unit="cell"))
    with pytest.raises(ValueError, match="scope server must be charged for client under add_remove, got"):
        ledger.add(replace(charge(2), adjacency="zero_out"))
    assert ledger.charges == (charge(1),)


def test_the_head_depends_on_every_charge_and_their_order() -> None:
    assert Ledger().head == EMPTY_HEAD
    heads = {
        Ledger(charges).head
        for charges in (
            [],
            [charge(1)],
            [charge(1), charge(2)],
            [charge(2), charge(1)],
            [charge(1), charge(2, key="other")],
            [charge(1), charge(2, multiplier=math.nextafter(1.1, 2))],
        )
    }
    assert len(heads) == 6
    assert Ledger([charge(1), charge(2)]).head == Ledger([charge(1), charge(2)]).head


def test_a_file_gives_back_every_bit(path: Path) -> None:
    made = [charge(number, multiplier=1 + 1 / (3 + number)) for number in range(4)]
    file = LedgerFile(path)
    file.charge(made[:3])
    file.charge([])
    file.charge(made[3:])
    again = LedgerFile(path, 4, file.ledger.head).ledger
    assert again.charges == tuple(made)
    assert again.head == file.ledger.head == Ledger(made).head
    assert again.epsilon("server", DELTA).hex() == Ledger(made).epsilon("server", DELTA).hex()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["chain"] == again.head


def test_a_new_file_holds_nothing(path: Path) -> None:
    assert LedgerFile(path).ledger.charges == ()
    assert path.read_bytes() == b""
    assert LedgerFile(path).ledger.head == EMPTY_HEAD


def test_a_charge_is_on_the_disk_before_it_is_released_by_one_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LedgerFile(path)
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda _: synced.append(len(path.read_bytes().splitlines())))
    file.charge(cohort(1))
    assert synced == [2]


def test_a_release_made_again_with_its_noise_is_not_charged_again(path: Path) -> None:
    before = filled(path).ledger
    head = Ledger(before.charges[:1]).head
    resumed = LedgerFile(path, 1, head)  # killed in round 3, its checkpoint is of round 1
    assert resumed.ledger.charges == before.charges
    for number in (2, 3):
        assert resumed.due([charge(number)]) == ()
        resumed.charge([charge(number)])
    assert resumed.ledger.charges == before.charges
    assert resumed.due([charge(4)]) == (charge(4),)
    resumed.charge([charge(4)])
    whole = filled(path.with_name("other"), 4).ledger
    assert LedgerFile(path).ledger.head == whole.head
    assert resumed.ledger.epsilon("server", DELTA).hex() == whole.epsilon("server", DELTA).hex()


def test_another_noise_is_charged_on_top_however_often_the_run_was_killed(path: Path) -> None:
    LedgerFile(path).charge(cohort(1, "a"))
    for key in ("b", "c"):
        LedgerFile(path).charge(cohort(1, key)[:1])
    last = LedgerFile(path)
    last.charge(cohort(1, "d"))
    last.charge(cohort(2, "d"))
    assert [(one.scope[-1], one.round, one.key) for one in LedgerFile(path).ledger.charges] == [
        *(("1", 1, "a"), ("3", 1, "a"), ("1", 1, "b"), ("1", 1, "c")),
        *(("1", 1, "d"), ("3", 1, "d"), ("1", 2, "d"), ("3", 2, "d")),
    ]
    again = LedgerFile(path)
    assert again.due(cohort(1, "a")) == ()


def test_a_round_is_charged_whole_after_a_kill_in_the_middle_of_its_write(path: Path) -> None:
    LedgerFile(path).charge(cohort(1))
    whole = path.read_bytes()
    for kept in range(len(whole) + 1):
        path.write_bytes(whole[:kept])
        file = LedgerFile(path)
        assert len(file.ledger.charges) == whole[:kept].count(b"\n")
        file.charge(cohort(1))
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "changed",
    [
        charge(2, multiplier=1.2),
        charge(4),
        charge(2, scope="client 3"),
        replace(charge(2), adjacency="replace_one"),
        replace(charge(2), unit="cell"),
        replace(charge(2), mechanism="cell"),
        replace(charge(2), release=replace(charge(2).release, sampling_rate=0.2)),
    ],
)
def test_a_run_with_other_settings_does_not_go_on(path: Path, changed: Charge) -> None:
    before = filled(path).ledger
    content = path.read_bytes()
    resumed = LedgerFile(path, 1, Ledger(before.charges[:1]).head)
    with pytest.raises(PrivacyError, match="has charged server for round") as refused:
        resumed.charge([changed])
    assert refused.value.code == "PRIV-RESUME"
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    assert path.read_bytes() == content
    assert resumed.ledger.charges == before.charges


def test_a_missing_file_is_refused_and_not_made(path: Path) -> None:
    with pytest.raises(PrivacyError, match=r"is missing.*\[PRIV-RESUME\]"):
        LedgerFile(path, 1, Ledger([charge(1)]).head)
    assert not path.exists()


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_shortened_file_is_refused_and_left_as_it_is(path: Path, kept: int) -> None:
    head = filled(path).ledger.head
    lines = path.read_bytes().splitlines(keepends=True)
    content = b"".join(lines[:kept]) + lines[kept][:-1]
    path.write_bytes(content)
    with pytest.raises(PrivacyError, match=f"holds {kept} charges, the checkpoint 3") as refused:
        LedgerFile(path, 3, head)
    assert refused.value.code == "PRIV-RESUME"
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (b'"round": 2', b'"round": 7', 2),
        (b'"noise_std": 1.1', b'"noise_std": 9.9', 1),
        (b'"noise_std": 1.1', b'"noise_std":  1.1', 1),
        (b'"noise_std": 1.1', b'"noise_std": NaN', 1),
        (b'"round": 3', b'"rounds": 3', 3),
        (b'"round": 3, ', b"", 3),
        (b"{", b"\xff", 1),
    ],
)
def test_a_changed_line_is_named(path: Path, old: bytes, new: bytes, line: int) -> None:
    filled(path)
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(PrivacyError, match=rf"was changed in line {line}: .*\[PRIV-RESUME\]"):
        LedgerFile(path)


def test_a_line_that_is_taken_out_or_moved_is_named(path: Path) -> None:
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(PrivacyError, match="was changed in line 2"):
        LedgerFile(path)
    path.write_bytes(lines[1] + lines[0] + lines[2])
    with pytest.raises(PrivacyError, match="was changed in line 1"):
        LedgerFile(path)


def test_the_ledger_of_another_run_is_refused(path: Path) -> None:
    filled(path)
    other = Ledger([charge(1, multiplier=2.0), charge(2, multiplier=2.0)])
    with pytest.raises(PrivacyError, match=r"is not the ledger of this checkpoint.*\[PRIV-RESUME\]"):
        LedgerFile(path, 2, other.head)
