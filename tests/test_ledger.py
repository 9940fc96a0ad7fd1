import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from fedssl.errors import PrivacyError
from fedssl.privacy.accounting import Release, epsilon
from fedssl.privacy.ledger import EMPTY_HEAD, Charge, Ledger, LedgerFile

RELEASE = Release(1.1, 1.0, 0.1, 5)


def charge(round_number: int, scope: str = "server", key: str = "first") -> Charge:
    return Charge(scope, round_number, "client", "client", "add_remove", RELEASE, key)


def test_an_empty_ledger_has_spent_nothing() -> None:
    ledger = Ledger()
    assert ledger.charges == ledger.scopes == ledger.releases("server") == ()
    assert ledger.head == EMPTY_HEAD == sha256(b"").hexdigest()
    assert ledger.epsilon("server", 1e-3) == 0


def test_releases_that_are_alike_and_adjacent_are_one() -> None:
    other = replace(charge(3), release=replace(RELEASE, noise_std=2.0))
    ledger = Ledger([charge(1), charge(2), other, charge(4)])
    assert ledger.releases("server") == (replace(RELEASE, count=10), other.release, RELEASE)
    assert ledger.charges == (charge(1), charge(2), other, charge(4))  # none is merged away


def test_a_ledger_costs_what_its_releases_cost() -> None:
    ledger = Ledger([charge(1), charge(2)])
    assert ledger.epsilon("server", 1e-3) == epsilon([replace(RELEASE, count=10)], 1e-3)
    assert ledger.epsilon("server", 1e-3, accountant="rdp") == epsilon(
        [replace(RELEASE, count=10)], 1e-3, accountant="rdp"
    )


def test_a_scope_costs_what_its_adjacency_costs() -> None:
    release = Release(2.0, 1.0, 1, 1)
    costs = {"add_remove": 1.993, "zero_out": 1.993, "replace_one": 4.377}
    for adjacency, cost in costs.items():
        ledger = Ledger([replace(charge(1), adjacency=adjacency, release=release)])
        assert ledger.epsilon("server", 1e-5) == pytest.approx(cost, abs=6e-4)


def test_scopes_do_not_add_up() -> None:
    alone = Ledger([charge(1, "client 1")])
    both = Ledger([charge(1, "client 2"), charge(1, "client 1"), charge(2, "client 2")])
    assert both.scopes == ("client 2", "client 1")
    assert both.epsilon("client 1", 1e-3) == alone.epsilon("client 1", 1e-3)
    assert both.epsilon("client 2", 1e-3) > both.epsilon("client 1", 1e-3)
    assert both.epsilon("client 3", 1e-3) == 0


@pytest.mark.parametrize("change", [{"adjacency": "replace_one"}, {"unit": "example"}])
def test_a_scope_keeps_its_unit_and_its_adjacency(change: dict[str, str]) -> None:
    ledger = Ledger([charge(1)])
    head = ledger.head
    with pytest.raises(ValueError, match="scope server must be charged for client under add_remove, got "):
        ledger.add(replace(charge(2), **change))
    assert (ledger.charges, ledger.head) == ((charge(1),), head)
    ledger.add(replace(charge(2, "client 1"), **change))


def test_the_chain_depends_on_every_charge_on_every_field_and_on_the_order() -> None:
    others = {
        "scope": "client 1",
        "round": 7,
        "mechanism": "local",
        "unit": "example",
        "adjacency": "zero_out",
        "release": replace(RELEASE, count=6),
        "key": "second",
    }
    heads = {Ledger([replace(charge(1), **{name: value})]).head for name, value in others.items()}
    assert len(heads | {EMPTY_HEAD, Ledger([charge(1)]).head}) == len(others) + 2
    assert Ledger([charge(1), charge(2)]).head != Ledger([charge(2), charge(1)]).head
    assert Ledger([charge(1), charge(2)]).head == Ledger([charge(1), charge(2)]).head


def test_a_ledger_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    file = LedgerFile(path)
    odd = Release(0.1 + 0.2, 1 / 3, 512 / 50_000, 97)  # none of them is a short decimal
    file.charge([charge(1), replace(charge(1, "client 1"), release=odd)])
    file.charge([replace(charge(2), release=odd)])
    again = LedgerFile(path, 3, file.ledger.head).ledger
    assert again.charges == file.ledger.charges
    assert again.head == file.ledger.head
    for scope in ("server", "client 1"):
        assert again.epsilon(scope, 1e-5).hex() == file.ledger.epsilon(scope, 1e-5).hex()
    program = (
        "import sys; from pathlib import Path; from fedssl.privacy.ledger import LedgerFile;"
        "print(LedgerFile(Path(sys.argv[1]), 3, sys.argv[2]).ledger.epsilon('server', 1e-5).hex())"
    )
    run = [sys.executable, "-c", program, str(path), again.head]
    found = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    assert found == again.epsilon("server", 1e-5).hex()


def test_a_line_is_a_charge_and_the_chain_up_to_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    file = LedgerFile(path)
    assert path.read_bytes() == b""
    file.charge([charge(1)])
    assert json.loads(path.read_text()) == {
        "scope": "server",
        "round": 1,
        "mechanism": "client",
        "unit": "client",
        "adjacency": "add_remove",
        "release": {"noise_std": 1.1, "clip": 1.0, "sampling_rate": 0.1, "count": 5},
        "key": "first",
        "chain": file.ledger.head,
    }
    before = path.read_bytes()
    file.charge([charge(2)])
    assert path.read_bytes().startswith(before)  # appended to, not written anew


def written(path: Path, rounds: int = 3) -> str:
    """Charge for rounds and return the head."""
    file = LedgerFile(path)
    for round_number in range(1, rounds + 1):
        file.charge([charge(round_number)])
    return file.ledger.head


def refused(path: Path, num_charges: int, head: str, reason: str) -> None:
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(PrivacyError, match=reason) as caught:
        LedgerFile(path, num_charges, head)
    assert caught.value.code == "PRIV-RESUME"
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"round": 2', '"round": 5'),
        ('"noise_std": 1.1', '"noise_std": 1.2'),
        ('"count": 5', '"count": 4'),
        ('"clip": 1.0', '"clip": 1.00'),  # the same number, another text
        ('"key": "first"', '"key": "other"'),
        ('"key": "first"', '"key": "first", "key": "first"'),
        ('"scope": "server"', '"scope": 3'),
        ("{", "["),
        ('"unit": "client", ', ""),
        ("}\n", "} \n"),
    ],
)
def test_a_line_that_was_changed_is_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "ledger"
    head = written(path)
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[1]
    lines[1] = lines[1].replace(old, new, 1)
    path.write_text("".join(lines))
    refused(path, 3, head, r"ledger was changed in line 2: put back what was written \[PRIV-RESUME\]")


def test_lines_that_were_swapped_or_taken_out_of_the_middle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    head = written(path)
    first, second, third = path.read_text().splitlines(keepends=True)
    path.write_text(second + first + third)
    refused(path, 3, head, "was changed in line 1")
    path.write_text(first + third)
    refused(path, 2, head, "was changed in line 2")


def test_a_file_that_lost_whole_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    head = written(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    refused(path, 3, head, "holds 2 charges, the checkpoint 3: put the whole file back")


def test_a_file_that_lost_part_of_a_line_that_the_checkpoint_knows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    head = written(path)
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, 3, head, "holds 2 charges, the checkpoint 3")


def test_a_missing_file_is_refused_and_a_first_one_is_made(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    refused(path, 1, Ledger([charge(1)]).head, "is missing, and without it what was spent is not known: put it back")
    LedgerFile(path)
    assert path.read_bytes() == b""


def test_the_ledger_of_another_run_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "one")
    file = LedgerFile(tmp_path / "other")
    file.charge([charge(number, key="other") for number in (1, 2, 3)])
    refused(tmp_path / "one", 3, file.ledger.head, "is not the ledger of this checkpoint: put that one back")


def test_a_last_line_that_was_cut_was_never_released_and_is_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    head = written(path, rounds=2)
    whole = path.read_bytes()
    written(tmp_path / "longer")
    third = (tmp_path / "longer").read_bytes()[len(whole) :]
    for kept in (1, len(third) // 2, len(third) - 1):
        path.write_bytes(whole + third[:kept])
        file = LedgerFile(path, 2, head)
        assert file.ledger.charges == (charge(1), charge(2))
        assert path.read_bytes() == whole
    file.charge([charge(3)])
    assert path.read_bytes() == whole + third


def killed_after_writing(path: Path, *ahead: Charge) -> LedgerFile:
    """Return the file of a run whose checkpoint knows one round, and which charged beyond it before it was killed."""
    file = LedgerFile(path)
    file.charge([charge(1)])
    head = file.ledger.head
    file.charge(ahead)
    return LedgerFile(path, 1, head)


def test_a_charge_that_was_written_ahead_pays_for_the_same_release_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    file = killed_after_writing(path, charge(2))
    spent = file.ledger.epsilon("server", 1e-3)
    assert spent == Ledger([charge(1), charge(2)]).epsilon("server", 1e-3)  # counted before it is made again
    content = path.read_bytes()
    file.charge([charge(2)])
    assert path.read_bytes() == content
    assert file.ledger.epsilon("server", 1e-3) == spent
    file.charge([charge(3)])
    assert file.ledger.charges == (charge(1), charge(2), charge(3))


def test_paid_ahead_is_paid_for_one_release(tmp_path: Path) -> None:
    file = killed_after_writing(tmp_path / "ledger", charge(2))
    file.charge([charge(2)])
    file.charge([charge(2)])
    assert file.ledger.charges == (charge(1), charge(2), charge(2))


def test_a_release_with_fresh_noise_is_charged_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    file = killed_after_writing(path, charge(2))
    file.charge([charge(2, key="second")])
    assert file.ledger.charges == (charge(1), charge(2), charge(2, key="second"))
    assert file.ledger.epsilon("server", 1e-3) == Ledger([charge(1), charge(2), charge(3)]).epsilon("server", 1e-3)
    again = LedgerFile(path, 1, Ledger([charge(1)]).head)  # killed once more: either noise is paid for
    for key in ("first", "second"):
        once = LedgerFile(path, 1, Ledger([charge(1)]).head)
        once.charge([charge(2, key=key)])
        assert once.ledger.charges == again.ledger.charges


@pytest.mark.parametrize(
    "change",
    [
        {"release": replace(RELEASE, noise_std=1.2)},
        {"release": replace(RELEASE, count=4)},
        {"round": 3},
        {"scope": "client 1"},
        {"unit": "example"},
        {"adjacency": "replace_one"},
    ],
)
def test_another_release_than_was_written_ahead_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "ledger"
    file = killed_after_writing(path, charge(2))
    content = path.read_bytes()
    with pytest.raises(PrivacyError, match="has charged server for round 2 otherwise than this run would") as caught:
        file.charge([replace(charge(2), **change)])
    assert caught.value.code == "PRIV-RESUME"
    assert path.read_bytes() == content


def test_some_of_what_was_written_ahead_pays_for_some_of_the_releases(tmp_path: Path) -> None:
    clients = [charge(2, f"client {number}") for number in range(3)]
    file = killed_after_writing(tmp_path / "ledger", *clients[:2])
    file.charge(clients)
    assert file.ledger.charges == (charge(1), *clients)  # client 2 alone was still to be charged


def test_clients_that_do_not_answer_again_stay_charged(tmp_path: Path) -> None:
    clients = [charge(2, f"client {number}") for number in range(3)]
    file = killed_after_writing(tmp_path / "ledger", *clients)
    file.charge(clients[:1])
    file.charge(clients[1:])
    assert file.ledger.charges == (charge(1), *clients)


def test_ledgers_are_made_again_from_the_file_for_every_round(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    costs = []
    for round_number in (1, 2, 3):
        known = LedgerFile(path).ledger if path.exists() else Ledger()
        file = LedgerFile(path, len(known.charges), known.head)
        file.charge([charge(round_number)])
        costs.append(file.ledger.epsilon("server", 1e-3))
    assert costs == [epsilon([replace(RELEASE, count=5 * number)], 1e-3) for number in (1, 2, 3)]
    assert costs == sorted(set(costs))
