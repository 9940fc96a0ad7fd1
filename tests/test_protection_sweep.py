"""The study of protection: gaps and free rides by hand, runs of one seed beside each other, and the report."""

import csv
from pathlib import Path

import pytest

from fedssl.errors import ConfigError
from fedssl.privacy.unlearnable.probe import SCORES, Domain, Probe
from fedssl.report.records import RunResult
from fedssl.sweep.plan import Sweep, expand, read_plan
from fedssl.sweep.point import RUN
from fedssl.sweep.protection import PROBE, Protection
from fedssl.sweep.protection_table import effects, joined
from fedssl.sweep.run import run_sweep
from fedssl.sweep.study import POINTS, Outcome, write_json
from simulate import main, simulate

TINY = (
    "experiment=quickstart_images", "engine=local", "data.test_fraction=0.8", "height=8", "width=8", "model.width=4",
    "model.stem_stride=2", "model.norm=group", "objective=rotnet", "rounds=1", "client.epochs=1",
    "partition=classes_per_client", "partition.num_clients=4", "partition.classes_per_client=3",
    "evaluation.scores=[kNN]",
)  # fmt: skip


def probe(accuracies: list[float], owners: int) -> Probe:
    """Return a probe of clients with 10, 20, 30, ... images, the first of which are owners."""
    return Probe(
        tuple(
            Domain(part, part < owners, 10 * (part + 1), dict.fromkeys(SCORES, value), dict.fromkeys(SCORES, 0.1))
            for part, value in enumerate(accuracies)
        )
    )


CLEAN = probe([0.9, 0.6, 0.8], 0)
PROTECTED = probe([0.6, 0.3, 0.7], 2)
ABSENT = probe([0.3, 0.3, 0.75], 2)


def outcome(protection: str, fraction: str, presence: str, seed: int = 0, method: str = "simclr") -> Outcome:
    labels = {
        "method": method, "protection": protection, "fraction": fraction, "presence": presence, "seed": str(seed),
    }  # fmt: skip
    return Outcome(labels, (), "done", "", 1.0, {"kNN": 0.5})


def test_gap_losses_and_free_ride_are_those_of_numbers_by_hand() -> None:
    found = effects(PROTECTED, CLEAN, ABSENT)
    before, after, without = (9 + 12) / 30, (6 + 6) / 30, (3 + 6) / 30  # of the 10 and 20 images of owners
    assert found["protected lose linear"] == pytest.approx(before - after) == pytest.approx(0.3)
    assert found["open lose linear"] == pytest.approx(0.1)
    assert found["gap linear"] == pytest.approx(0.2)
    assert found["free ride kNN unseen"] == pytest.approx(after - without) == pytest.approx(0.1)


def test_nobody_protected_is_a_gap_of_exactly_zero() -> None:
    found = effects(CLEAN, CLEAN, None)
    assert [found[f"gap {score}"] for score in SCORES] == [0.0] * 4
    assert not any(name.startswith(("protected lose", "free ride")) for name in found)


def test_with_everybody_protected_the_gap_is_what_all_lose() -> None:
    found = effects(probe([0.5, 0.5, 0.5], 3), CLEAN, None)
    assert found["gap kNN"] == found["protected lose kNN"] == pytest.approx((9 + 12 + 24) / 60 - 0.5)
    assert "open lose kNN" not in found


def test_what_is_missing_leaves_its_effect_out() -> None:
    assert set(effects(PROTECTED, None, None)) == set()
    assert set(effects(PROTECTED, None, ABSENT)) == {f"free ride {score}" for score in SCORES}


def test_runs_are_compared_with_those_of_their_own_seed_and_method() -> None:
    found = joined(
        [
            outcome("none", "0", "protected"),
            outcome("none", "0", "protected", seed=1),
            outcome("none", "0.5", "absent"),
            outcome("uc", "0.5", "protected"),
            outcome("uc", "0.5", "protected", seed=1),
            outcome("uc", "0.5", "protected", method="byol"),
            outcome("uc", "0.25", "protected"),
            outcome("uc", "1", "protected"),
        ],
        [CLEAN, PROTECTED, ABSENT, PROTECTED, PROTECTED, PROTECTED, PROTECTED, None],
    )
    gaps = [each.numbers.get("gap linear") for each in found]
    assert gaps == [0, 0, None, pytest.approx(0.2), 0, None, pytest.approx(0.2), None]
    assert ["free ride linear" in each.numbers for each in found] == [False] * 3 + [True] + [False] * 4


def test_the_report_has_a_table_a_score_a_picture_and_a_row_a_point(tmp_path: Path) -> None:
    outcomes = [outcome("none", "0", "protected"), outcome("uc", "0.5", "protected"), outcome("none", "0.5", "absent")]
    for each, own in zip(outcomes, (CLEAN, PROTECTED, ABSENT), strict=True):
        labels = "_".join(f"{axis}-{label}" for axis, label in each.labels.items())
        (tmp_path / POINTS / labels).mkdir(parents=True)
        write_json(tmp_path / POINTS / labels / PROBE, own.to_dict())
    page = Protection().report(tmp_path, outcomes)
    table = (tmp_path / "sweep.md").read_text()
    assert [line[3:] for line in table.splitlines() if line.startswith("## ")] == list(SCORES)
    assert "| simclr | uc | 0.5 | protected | 0.200 | 0.300 | 0.100 | 0.100 |" in table
    assert "Protection is empirical" in table
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["gap linear"] for row in rows] == ["0.0", rows[1]["gap linear"], ""]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "<h2>linear unseen</h2>" in page.read_text()


def test_the_sweep_has_runs_to_compare_with_for_every_method_and_seed() -> None:
    points = read_plan(["sweep=protection"]).points
    labels = [tuple(point.labels.values()) for point in points]
    kinds = {each[1:4] for each in labels}
    control = {("random_sample", share, "protected") for share in ("0.25", "0.5", "1")}
    assert control | {("none", "0", "protected"), ("none", "0.25", "absent"), ("none", "0.5", "absent")} <= kinds
    assert len(labels) == len(kinds) * 3 * 3


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        ({"seed": {"0": []}}, "each grid must have an axis fraction of numbers, got none"),
        ({"fraction": {"half": []}}, "each grid must have an axis fraction of numbers, got half"),
        ({"fraction": {"0": []}, "presence": {"there": []}}, "presence must be protected or absent, got there"),
    ],
)
def test_axes_must_say_who_is_protected(grid: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Protection().check([grid])


def test_a_word_of_the_sweep_that_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "sweep=protection", "fraction=0.3"]) == 2
    assert "fraction=0.3: no such label of the sweep; allowed: 0, 0.25, 0.5, 1" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no point has all of the chosen labels"):
        read_plan(["sweep=protection", "presence=absent", "protection=random_sample"])


def test_a_point_is_told_by_what_is_known_of_either_kind_of_clients(tmp_path: Path) -> None:
    write_json(tmp_path / PROBE, PROTECTED.to_dict())
    result = RunResult("completed", 1, "", {}, {}, None, 2, 0, 1.0, 0, 0, {})
    numbers, violated = Protection().examine(tmp_path, None, result, pytest.fail)
    assert (numbers["protected linear"], numbers["open linear"], violated) == (pytest.approx(0.4), 0.7, "")
    assert set(Protection.told) <= set(numbers)


def test_a_little_noise_changes_little_and_no_noise_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three real runs: nobody, nobody by another name, and half of the clients with random noise of 2 levels."""
    axes = {
        "protection": {"random_sample": ["protection=random_sample", "protection.budget=2"]},
        "fraction": {"0": ["owners.fraction=0"], "0.5": ["owners.fraction=0.5"]},
        "presence": {"protected": []},
    }
    absent = {
        "protection": {"none": []},
        "fraction": {"0.5": ["owners.fraction=0.5"]},
        "presence": {"absent": ["owners.absent=true"]},
    }
    sweep = Sweep(tmp_path, expand([axes, absent], TINY), Protection(), 1)
    assert run_sweep(sweep, simulate) == 0
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [float(rows[0][f"gap {score}"]) for score in SCORES] == [0.0] * 4
    assert all(abs(float(rows[1][f"gap {score}"])) < 0.1 for score in SCORES)
    assert all(abs(float(rows[1][f"protected lose {score}"])) < 0.1 for score in SCORES)
    assert rows[1]["free ride linear"] != ""
    assert rows[2]["protected linear"] != ""
    assert (tmp_path / POINTS / sweep.points[1].name / RUN / "protection").is_dir()
    assert "3 done" in capsys.readouterr().out
