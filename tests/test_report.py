import json
import re
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedssl.errors import ConfigError
from fedssl.report.closing import closing_table
from fedssl.report.html import Held, write_report
from fedssl.report.plots import angle_curves, loss_curve, partition_plot, pseudo_label_curves, score_curves
from fedssl.report.progress import Progress, round_line
from fedssl.report.records import Failure, RoundRecord, RunResult
from fedssl.report.rundir import RunDirectory
from fedssl.report.units import human_bytes, human_difference, human_seconds
from fedssl.report.versions import _commit, versions


def record(number: int = 3, failed: bool = False) -> RoundRecord:
    failures = (Failure(number, 4, "out of memory <b>"),) if failed else ()
    scores = {"R@1": 0.6 + 0.01 * number, "probe_accuracy": 0.5}
    return RoundRecord(number, scores, {"loss": 1.62}, None, 1500, 2_000_000, 2.1, (0, 1, 2, 3, 5), failures)


def result(privacy: list | None = None) -> RunResult:
    final, untrained = {"R@1": 0.71, "probe_accuracy": 0.5}, {"R@1": 0.46, "probe_accuracy": 0.4}
    return RunResult(
        "completed", 3, "ab12", final, untrained, privacy, 6, 1, 3725.0, 4500, 6_000_000, {"torch": "2.14"}
    )


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("name", ["config.yaml", "rounds.jsonl", "result.json"])
def test_a_directory_that_holds_a_run_is_refused_and_left_as_it_was(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("earlier")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"run_dir={tmp_path}: already holds a run; choose another")):
        RunDirectory.create(tmp_path, "seed: 1\n")
    assert contents(tmp_path) == before


def test_a_file_is_refused_as_a_run_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory.create(path, "")


def test_every_file_comes_back_as_written_and_no_partial_file_stays(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "a" / "b", "seed: 1\n")
    run.append_round(record(1))
    run.append_round(record(2, failed=True))
    run.write_result(result())
    run.write_model({"backbone.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T, "head.bias": np.zeros(1)})
    assert sorted(contents(run.path)) == ["config.yaml", "encoder.safetensors", "result.json", "rounds.jsonl"]
    assert (run.path / "config.yaml").read_text() == "seed: 1\n"
    lines = (run.path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(1).to_dict(), record(2, failed=True).to_dict()]
    assert json.loads((run.path / "result.json").read_text()) == result().to_dict()
    assert load_file(run.path / "encoder.safetensors")["weight"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_write_that_fails_leaves_the_old_file_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path, "old")

    def full(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        run.write_text("config.yaml", "new")
    assert contents(tmp_path) == {"config.yaml": b"old"}


def test_a_file_name_with_a_folder_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        RunDirectory(tmp_path).write_text("../x", "")


def test_numbers_json_has_no_word_for_become_null_and_numpy_numbers_become_plain() -> None:
    metrics = MappingProxyType({"loss": float("nan"), "lr": np.float32(0.5)})
    row = RoundRecord(1, {}, metrics, float("inf"), 0, 0, 0.0, (), ()).to_dict()
    assert row["metrics"] == {"loss": None, "lr": 0.5}
    assert row["epsilon"] is None


def test_versions_name_the_libraries_and_no_commit_outside_a_checkout(tmp_path: Path) -> None:
    assert {"python", "fedssl", "flwr", "torch", "torchvision", "ray", "numpy"} <= set(versions())
    assert versions()["numpy"] == np.__version__
    assert _commit(tmp_path) is None


def test_units_are_those_a_person_reads() -> None:
    assert [human_bytes(n) for n in (0, 999, 1500, 999_999, 44_700_000)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "1.0 MB",
        "44.7 MB",
    ]
    assert [human_seconds(s) for s in (2.1, 59.97, 185, 3725)] == ["2.1 s", "1 min 00 s", "3 min 05 s", "1 h 02 min"]
    assert human_difference(0.71, 0.46) == "+0.250"
    assert human_difference(None, 0.46) == "-"


def test_a_round_is_one_plain_line_when_stderr_is_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.begin(20)
        progress.client_done(3, 1, 5)
        progress.round_done(record())
    line = "round 3/20  loss 1.62  R@1 0.63  probe_accuracy 0.50  5 clients  2.1 s\n"
    assert capsys.readouterr() == ("", line)
    assert "  1 failed  " in round_line(record(failed=True), 20)


def test_the_closing_table_puts_each_score_beside_the_untrained_one() -> None:
    text = closing_table(result())
    assert re.search(r"score\s+untrained\s+final\s+difference", text)
    assert re.search(r"R@1\s+0\.460\s+0\.710\s+\+0\.250", text)
    assert re.search(r"time\s+1 h 02 min", text)
    assert "\x1b" not in text


def test_plots_are_the_same_for_the_same_numbers_and_empty_without_any() -> None:
    counts = np.array([[3, 0], [1, 2]])
    assert partition_plot(counts, ["_cat", "$dog"]) == partition_plot(counts, ["_cat", "$dog"])
    assert "_cat" in partition_plot(counts, ["_cat", "$dog"])
    assert partition_plot(np.ones((41, 2), int), ["a", "b"]).count("<image") == 2
    assert score_curves([], {}) == loss_curve([]) == ""
    with pytest.raises(ValueError, match=r"\[clients, 1\]"):
        partition_plot(counts, ["a"])


def words(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def hatched(svg: str) -> int:
    return svg.count("fill: url(#h")


def test_a_partition_whose_labels_are_all_known_is_drawn_as_one_without_labels() -> None:
    for shape in ((4, 3), (41, 3), (3, 21)):
        counts = np.arange(np.prod(shape)).reshape(shape)
        names = [f"class {index}" for index in range(shape[1])]
        assert partition_plot(counts, names) == partition_plot(counts, names, counts.copy(), None)


def test_unlabelled_examples_are_hatched_and_the_legend_says_so() -> None:
    counts = np.array([[3, 0], [1, 2]])
    svg = partition_plot(counts, ["cat", "dog"], np.array([[3, 0], [0, 1]]))
    # one cat and one dog of client 1, and the patch in the legend
    assert hatched(svg) == 3
    assert words(svg)[-3:] == ["cat", "dog", "unlabelled"]
    assert hatched(partition_plot(counts, ["cat", "dog"])) == 0
    assert "unlabelled" not in words(partition_plot(counts, ["cat", "dog"]))


def test_many_clients_get_a_second_panel_of_labelled_examples() -> None:
    counts = np.full((41, 2), 5)
    for labelled in (np.ones_like(counts), np.zeros_like(counts)):
        svg = partition_plot(counts, ["cat", "dog"], labelled)
        assert svg.count("<image") == 4
        assert {"examples", "labelled examples"} < set(words(svg))


@pytest.mark.parametrize("clients", [3, 60])
def test_the_server_has_a_row_of_its_own(clients: int) -> None:
    counts = np.full((clients, 2), 5)
    for labelled in (None, 0 * counts):
        svg = partition_plot(counts, ["cat", "dog"], labelled, np.array([4, 3]))
        assert words(svg).count("server") == (2 if clients == 60 and labelled is not None else 1)
    assert "server" not in words(partition_plot(counts, ["cat", "dog"]))


def test_more_labels_than_examples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^labelled must be \[2, 1\] and at most counts"):
        partition_plot(np.array([[1], [2]]), ["a"], np.array([[1], [3]]))
    with pytest.raises(ValueError, match=r"^labelled must be \[2, 1\] and at most counts, got \[1, 1\]"):
        partition_plot(np.array([[1], [2]]), ["a"], np.array([[1]]))


def measured(number: int, metrics: dict[str, float]) -> RoundRecord:
    return RoundRecord(number, {}, metrics, None, 0, 0, 0.0, (), ())


def curves(svg: str) -> list[tuple[str, str, int]]:
    """Return colour, width and number of points of every solid curve, without the lines of the grid."""
    paths = re.findall(r'd="([^"]*)" clip-path="[^"]*" style="fill: none; stroke: (#\w+); stroke-width: ([\d.]+)', svg)
    return [(colour, width, 1 + points.count("L")) for points, colour, width in paths if colour != "#e5e7eb"]


def test_pseudo_labels_have_a_panel_of_coverage_and_one_of_accuracy() -> None:
    coverage, accuracy = "pseudo-label coverage", "pseudo-label accuracy"
    records = [measured(number, {coverage: 0.5, f"{coverage}.0": 0.1 * number}) for number in range(1, 6)]
    records[1] = measured(2, {**records[1].metrics, accuracy: 0.9, f"{accuracy}.1": 0.8})
    records[3] = measured(4, {**records[3].metrics, accuracy: 0.9, f"{accuracy}.1": 0.7})
    svg = pseudo_label_curves(records, ["_cat", "dog", "eel"])
    assert svg == pseudo_label_curves(records, ["_cat", "dog", "eel"])
    # the cat and all in five rounds; the dog and all in two
    blue, orange, black = "#1f77b4", "#ff7f0e", "#111827"
    assert curves(svg) == [(blue, "0.9", 5), (black, "2.4", 5), (orange, "0.9", 2), (black, "2.4", 2)]
    assert words(svg)[-3:] == ["_cat", "all classes", "dog"]
    assert {coverage, accuracy} < set(words(svg))


def test_pseudo_labels_of_more_classes_than_have_colours_are_not_named() -> None:
    metrics = {"pseudo-label coverage": 0.5, **{f"pseudo-label coverage.{index}": 0.5 for index in range(21)}}
    svg = pseudo_label_curves([measured(1, metrics), measured(2, metrics)], [f"c{index}" for index in range(21)])
    assert len(curves(svg)) == 22
    assert words(svg)[-2:] == ["one class", "all classes"]
    assert "pseudo-label accuracy" not in words(svg)


def test_angles_share_a_panel_with_a_line_at_a_right_angle() -> None:
    records = [measured(1, {"gradient angle": 80.0}), measured(2, {"update angle": 95.0}), measured(3, {})]
    records += [measured(4, {"gradient angle": 85.0, "update angle": 90.0}), measured(5, {"update angle": 91.0})]
    svg = angle_curves(records)
    assert [points for _, _, points in curves(svg)] == [2, 3]
    assert svg.count("stroke-dasharray") == 1
    assert words(svg)[-2:] == ["gradient angle", "update angle"]


def test_nothing_is_drawn_of_metrics_that_no_round_has() -> None:
    assert angle_curves([]) == pseudo_label_curves([], ["a"]) == ""
    assert angle_curves([record(1)]) == pseudo_label_curves([record(1)], ["a"]) == ""


def test_the_report_has_every_part_and_needs_no_network(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "seed: 7\n")
    counts = np.arange(60).reshape(6, 10)
    write_report(
        run, "seed: 7\n", [record(1), record(2, True)], result(), Held(counts), [f"class {i}" for i in range(10)]
    )
    page = (tmp_path / "report.html").read_text()
    words = ["R@1", "0.460", "0.710", "+0.250", "probe_accuracy", "+0.100", "seed: 7", "guarantee: none", "torch"]
    assert not [word for word in words if word not in page]
    assert "out of memory &lt;b&gt;" in page
    assert page.count("<svg") == 3
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))


def test_the_report_shows_a_guarantee_when_there_is_one(tmp_path: Path) -> None:
    guarantee = {"unit": "client", "epsilon": 3.1999, "delta": None, "assumptions": ["one", "two"], "details": {"n": 4}}
    write_report(RunDirectory(tmp_path), "", [], result([guarantee]), None, [])
    page = (tmp_path / "report.html").read_text()
    assert not [word for word in ("3.200", "one; two", "n: 4") if word not in page]
    assert "None" not in page
    assert "guarantee: none" not in page
