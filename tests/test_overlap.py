"""What clients share, counted from the names of files."""

import re
from pathlib import Path

import pytest

from fedssl.data.overlap import main, overlaps

PAIR = ["k400_paper_8c", "k400_disjoint_8c"]


@pytest.fixture
def kinetics(tmp_path: Path) -> str:
    """Make 12 classes of 4 videos each, all of them empty files that nobody can decode."""
    (tmp_path / "annotations").mkdir()
    for part, count in (("train", 4), ("val", 1)):
        (tmp_path / part).mkdir()
        rows = [(f"class{label:02}", f"{part}{label}_{number}") for label in range(12) for number in range(count)]
        for _, name in rows:
            (tmp_path / part / f"{name}.mp4").touch()
        lines = ["label,youtube_id,time_start,time_end", *(f"{label},{name},0,10" for label, name in rows)]
        (tmp_path / "annotations" / f"{part}.csv").write_text("\n".join(lines))
    return f"data.root={tmp_path}"


def test_the_two_partitions_of_kinetics_are_a_table_without_decoding_a_video(
    kinetics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # windows of the classes 0 to 3 and 1 to 4, and of 7 to 10 and 6 to 9; half of each class at each of two clients
    words = [*PAIR, "data=kinetics400", kinetics, "partition.num_clients=4"]
    assert main(words) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: " ".join(line[1:]) for line in lines if line and line[0] in PAIR}
    assert rows["k400_paper_8c"] == "4 8 10 of 12 40 of 48 1.60 4"
    assert rows["k400_disjoint_8c"].startswith("4 8 12 of 12 48 of 48 1.00")


def test_one_partition_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["data.num_train=16", "data.num_test=8", "partition.num_clients=2"]
    line = "2 clients of 8 classes: 8 of 8 classes, 16 of 16 examples, 1.00 clients each\n"
    for words in (["classes_per_client", "partition.classes_per_client=8"], ["partition=quantity_skew"], []):
        assert main([*small, *words]) == 0
        assert re.sub(r"of \d( to \d)? classes:", "of 8 classes:", capsys.readouterr().out) == line


def test_names_and_overrides_of_a_partition_are_the_same() -> None:
    small = ["data.num_train=16", "data.num_test=8", "partition.num_clients=2"]
    assert list(overlaps([*small, "iid", "partition=dirichlet"])) == ["iid", "dirichlet"]
    assert list(overlaps(small)) == [""]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nothing"], r"partition=nothing: no such option; allowed: .*"),
        (["on_device"], r"partition=on_device: is for devices, which divide nothing"),
        (["iid", "data=kinetics400"], r"data\.root=\?\?\?: must be given"),
        (["data=video_folder", "data.root=/nope"], "/nope: no such folder"),
        (["k400_paper_8c", "data.num_train=16"], r"partition\.num_clients=100: must be at most 8 with these classes"),
        (["iid", "partition.num_clients=0"], r"partition\.num_clients=0: must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(line + "\n", captured.err)
