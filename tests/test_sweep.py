"""Sweeps: the grid, what is run and what is not, and the report."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedssl.errors import ConfigError, PrivacyError, RunError
from fedssl.report.records import RunResult
from fedssl.report.rundir import RESULT, RunDirectory
from fedssl.sweep.plan import Sweep, expand, read_plan
from fedssl.sweep.point import OUTCOME
from fedssl.sweep.privacy import Audit, Privacy
from fedssl.sweep.privacy_table import column_names, frontier, group_rows, pareto
from fedssl.sweep.run import run_sweep
from fedssl.sweep.study import POINTS, Outcome, Point
from fedssl.sweep.table import csv_text, groups_of
from simulate import main, simulate

TINY = (
    "experiment=quickstart_images",
    "engine=local",
    "height=8",
    "width=8",
    "model.width=8",
    "model.norm=group",
    "model.stem_stride=2",
    "objective=rotnet",
    "partition=iid",
    "partition.num_clients=2",
    "rounds=1",
    "client.epochs=1",
    "evaluation.scores=[kNN]",
)


class Fake:
    """Stands for the run of one configuration: writes its result, or fails as it is told to."""

    def __init__(self, **errors: BaseException) -> None:
        self.errors = errors
        self.calls: list[Sequence[str]] = []

    def __call__(self, overrides: Sequence[str]) -> None:
        self.calls.append(overrides)
        settings = dict(word.split("=", 1) for word in overrides)
        if (error := self.errors.get(f"seed{settings['seed']}")) is not None:
            raise error
        scores, untrained = {"kNN": 0.5 + int(settings["seed"]) / 10}, {"kNN": 0.4}
        path = Path(settings["run_dir"].strip("'"))
        path.mkdir(parents=True)
        RunDirectory(path).write_result(RunResult("completed", 1, "", scores, untrained, None, 2, 0, 1.0, 0, 0, {}))


def sweep_of(folder: Path, seeds: int = 3) -> Sweep:
    return Sweep(folder, expand([{"seed": {str(seed): [f"seed={seed}"] for seed in range(seeds)}}]), Privacy(), 1)


def outcome(objective: str, epsilon: str, seed: int, knn: float | None, **more: float) -> Outcome:
    labels = {"objective": objective, "mechanism": "example", "epsilon": epsilon, "seed": str(seed)}
    if knn is None:
        return Outcome(labels, (), "refused", "privacy=example: no, | never [PRIV-E-COUPLED]", 0.1, {})
    numbers = {"kNN": knn, "untrained kNN": 0.3, **more}
    return Outcome(labels, (), "done", "", 1.5, numbers)


LEAK = {"epsilon spent": 1.0, "lower bound": 0.4, "lower bound of an example": 0.2, "attack AUC": 0.55, "SSLMem": 0.01}
OUTCOMES = [
    outcome("rotnet", "1", 0, 0.5, **LEAK),
    outcome("rotnet", "1", 1, 0.7, **LEAK),
    outcome("rotnet", "8", 0, 0.8),
    outcome("byol", "8", 0, 0.7),
    outcome("byol", "none", 0, 0.8),
    outcome("simclr", "1", 0, None),
]


def test_the_points_are_the_product_of_the_axes_with_the_last_one_fastest() -> None:
    grids = [
        {"objective": {"rotnet": ["objective=rotnet"], "byol": ["objective=byol"]}, "seed": {"0": ["a=0"], "1": []}},
        {"seed": {"2": ["a=2"]}},
    ]
    points = expand(grids, ["rounds=1"])
    assert [point.overrides for point in points] == [
        ("rounds=1", "objective=rotnet", "a=0"),
        ("rounds=1", "objective=rotnet"),
        ("rounds=1", "objective=byol", "a=0"),
        ("rounds=1", "objective=byol"),
        ("rounds=1", "a=2"),
    ]
    assert points[0].name == "objective-rotnet_seed-0"


def test_a_word_with_several_values_is_an_axis_and_one_with_a_single_value_is_set_in_all_points(tmp_path: Path) -> None:
    last = ("evaluation.ks=[1,5]", "rounds=3")
    sweep = read_plan(["seed=0,1", *last, f"sweep_dir={tmp_path}"])
    assert [point.overrides for point in sweep.points] == [("seed=0", *last), ("seed=1", *last)]
    assert (sweep.folder, sweep.study, sweep.processes) == (tmp_path, Privacy(), 1)


def test_the_privacy_sweep_has_every_mechanism_at_every_epsilon_and_none_at_none() -> None:
    points = read_plan(["sweep=privacy_utility"]).points
    found = {(point.labels["mechanism"], point.labels["epsilon"]) for point in points}
    private = {(name, epsilon) for name in ("example", "cell", "client") for epsilon in ("1", "2", "4", "8")}
    assert found == private | {("none", "none")}
    assert len(points) == len(found) * 3 * 3


def test_a_word_that_names_an_axis_takes_some_of_its_labels() -> None:
    sweep = read_plan(["sweep=privacy_utility", "objective=simclr", "epsilon=8,none", "mechanism=none,cell", "seed=1"])
    assert [dict(point.labels) for point in sweep.points] == [
        {"objective": "simclr", "mechanism": "none", "epsilon": "none", "seed": "1"},
        {"objective": "simclr", "mechanism": "cell", "epsilon": "8", "seed": "1"},
    ]
    assert "canaries.directions=20" in sweep.points[1].overrides


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["sweep=privacy_utility", "epsilon=3"], "epsilon=3: no such label of the sweep; allowed: none, 1, 2, 4, 8"),
        (["sweep=privacy_utility", "mechanism=none", "epsilon=8"], "no point has all of the chosen labels"),
        (["sweep=privacy"], "sweep=privacy: no such option; allowed: privacy_utility"),
        (["seed=0,1", "rounds=0"], "rounds=0"),
        (["objective=rotnet,none_such"], "objective=none_such: no such option"),
        (["seed=0,1", "processes=two"], "processes=two: must be a whole number"),
        (["seed"], "seed: not of the form key=value"),
    ],
)
def test_bad_input_gets_one_line_and_exit_2_before_anything_is_run(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    assert main(["-m", *words, f"sweep_dir={folder}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line
    assert not folder.exists()


def test_a_sweep_is_no_part_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep=privacy_utility"]) == 2
    assert "sweep=privacy_utility: is no part of a run" in capsys.readouterr().err


def test_a_point_that_fails_is_written_down_and_the_others_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = PrivacyError("privacy=example: no", "PRIV-BN")
    assert run_sweep(sweep_of(tmp_path), Fake(seed0=RunError("round 1: too few"), seed1=refused)) == 3
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [(row["status"], row["reason"]) for row in rows] == [
        ("failed", "round 1: too few"),
        ("refused", "privacy=example: no [PRIV-BN]"),
        ("done", ""),
    ]
    assert float(rows[2]["kNN"]) == 0.7
    assert "1 done, 1 refused, 1 failed" in capsys.readouterr().out


def test_refusals_are_no_failures(tmp_path: Path) -> None:
    assert run_sweep(sweep_of(tmp_path), Fake(seed1=PrivacyError("no", "PRIV-BN"))) == 0


def test_what_is_done_is_not_run_again_and_what_failed_is(tmp_path: Path) -> None:
    assert run_sweep(sweep_of(tmp_path), Fake(seed1=OSError("disk full"))) == 3
    again = Fake()
    assert run_sweep(sweep_of(tmp_path), again) == 0
    assert [call[0] for call in again.calls] == ["seed=1"]
    assert again.calls[0][-1] == "resume=auto"


def test_several_processes_leave_what_one_leaves(tmp_path: Path) -> None:
    for processes in (1, 2):
        sweep = dataclasses.replace(sweep_of(tmp_path / str(processes)), processes=processes)
        assert run_sweep(sweep, Fake(seed1=RunError("round 1: too few"))) == 3
    one, two = (list(csv.DictReader((tmp_path / name / "sweep.csv").open())) for name in ("1", "2"))
    assert [{**row, "seconds": ""} for row in one] == [{**row, "seconds": ""} for row in two]


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    inner = RunError("interrupted")
    inner.__cause__ = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep_of(tmp_path), Fake(seed1=inner))
    assert not (tmp_path / POINTS / "seed-1" / OUTCOME).exists()
    again = Fake()
    assert run_sweep(sweep_of(tmp_path), again) == 0
    assert [call[0] for call in again.calls] == ["seed=1", "seed=2"]


def test_a_directory_of_another_sweep_is_refused(tmp_path: Path) -> None:
    run_sweep(sweep_of(tmp_path, 1), Fake())
    other = Sweep(tmp_path, (Point({"seed": "0"}, ("seed=0", "rounds=9")),), Privacy(), 1)
    with pytest.raises(ConfigError, match="other settings"):
        run_sweep(other, Fake())


def test_the_frontier_has_what_no_other_point_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (2.0, 0.6), (4.0, 0.6), (math.inf, 0.9), (2.0, 0.6)]
    assert pareto(points) == [True, False, True, False, True, True]


def test_the_frontier_of_groups_takes_means_over_seeds() -> None:
    groups = groups_of(OUTCOMES)
    assert groups[0].mean("kNN") == pytest.approx(0.6)
    assert groups[0].spread("kNN") == pytest.approx(math.sqrt(0.02))
    assert frontier(groups, "kNN") == [True, True, False, False, False]  # byol without noise only equals rotnet at 8


def test_what_is_no_more_than_the_spread_is_no_gain() -> None:
    groups = groups_of([outcome("rotnet", "1", seed, knn) for seed, knn in enumerate((0.3, 0.5, 0.3))])
    assert groups[0].differences("kNN", "untrained kNN") == pytest.approx([0.0, 0.2, 0.0])
    header, rows = group_rows(groups, ["kNN"])
    assert rows[0][header.index("kNN gained")] == "+0.067 ± 0.115, none"


def test_the_csv_has_a_row_a_point_and_a_column_a_number() -> None:
    header, first, *_, last = csv_text(OUTCOMES, column_names(OUTCOMES)).splitlines()
    assert header == (
        "objective,mechanism,epsilon,seed,status,reason,seconds,"
        "kNN,untrained kNN,epsilon spent,lower bound,lower bound of an example,attack AUC,SSLMem"
    )
    assert first == "rotnet,example,1,0,done,,1.500,0.5,0.3,1.0,0.4,0.2,0.55,0.01"
    assert last.startswith('simclr,example,1,0,refused,"privacy=example: no, | never [PRIV-E-COUPLED]",0.100,,')


def test_the_report_has_a_table_a_plot_and_a_page(tmp_path: Path) -> None:
    page = Privacy().report(tmp_path, OUTCOMES)
    table = (tmp_path / "sweep.md").read_text()
    assert "| rotnet | example | 1 | 0.600 ± 0.141 |" in table
    assert "| +0.300 ± 0.141 | yes | 2 done |" in table
    assert "1 refused: privacy=example: no, / never [PRIV-E-COUPLED]" in table
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in page.read_text()


def test_a_sweep_without_epsilon_has_a_table_and_no_plot(tmp_path: Path) -> None:
    run_sweep(sweep_of(tmp_path), Fake())
    assert not (tmp_path / "sweep.png").exists()
    assert "0.600 ± 0.100" in (tmp_path / "sweep.md").read_text()


def test_a_sweep_of_two_real_points_audits_both_and_the_second_call_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, "canaries.fraction=0.5"]
    grid = {
        "mechanism": {"client": ["privacy=client", "strategy.weights=equal"]},
        "epsilon": {"8": ["privacy.target_epsilon=8", "canaries.directions=20"], "none": ["privacy=none"]},
    }
    sweep = Sweep(tmp_path, expand([grid], words), Privacy(Audit(2, 50)), 1)
    assert run_sweep(sweep, simulate) == 0
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert float(rows[0]["epsilon spent"]) == pytest.approx(8, rel=0.01)
    assert rows[1]["epsilon spent"] == ""
    assert all(0 <= float(row["attack AUC"]) <= 1 and float(row["lower bound of an example"]) >= 0 for row in rows)
    assert float(rows[0]["lower bound"]) <= 8
    assert rows[1]["lower bound"] == ""  # without a mechanism there is nowhere to plant canaries
    before = (tmp_path / POINTS / sweep.points[0].name / "twin" / RESULT).stat().st_mtime_ns
    assert run_sweep(sweep, Fake()) == 0
    assert (tmp_path / POINTS / sweep.points[0].name / "twin" / RESULT).stat().st_mtime_ns == before
    assert "2 of 2 points were run before" in capsys.readouterr().err
