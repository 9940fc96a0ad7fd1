"""UCF101, HMDB51 and Kinetics-400 in the small, laid out as their publishers do."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from videos import write_video

from fedssl.data.dataset import Splits
from fedssl.data.file_dataset import FileDataset
from fedssl.data.video_folder import video_folder
from fedssl.data.video_lists import hmdb51, kinetics400, ucf101
from fedssl.errors import DataError

COLUMNS = "label,youtube_id,time_start,time_end"
LUNG = Path(__file__).resolve().parents[2] / "shared/data/video/lung_ultrasound"


def names(splits: Splits) -> tuple[list[str], list[str]]:
    assert isinstance(splits.train, FileDataset)
    assert isinstance(splits.test, FileDataset)
    return [path.name for path in splits.train.paths], [path.name for path in splits.test.paths]


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    root, lists = tmp_path / "UCF-101", tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    files = [f"{label}/v_{label}_g{group:02}_c01.avi" for label in ("Typing", "Archery") for group in (1, 8, 9)]
    for number, file in enumerate(files):
        write_video(root / file, 40 * number)
    (lists / "classInd.txt").write_text("1 Typing\r\n2 Archery\r\n")
    for number, held in (("1", "g01"), ("2", "g08")):
        test = [file for file in files if held in file]
        train = [f"{file} {1 + ('Archery' in file)}" for file in files if held not in file]
        (lists / f"testlist0{number}.txt").write_text("\r\n".join([*test, ""]))
        (lists / f"trainlist0{number}.txt").write_text("\r\n".join([*train, ""]))
    return root


def test_ucf101_is_split_by_its_lists_and_numbered_by_its_index(ucf: Path) -> None:
    splits = ucf101(str(ucf), height=8, width=8)
    assert splits.train.classes == ("Typing", "Archery")
    assert names(splits)[1] == ["v_Typing_g01_c01.avi", "v_Archery_g01_c01.avi"]
    assert splits.test.labels.tolist() == [0, 1]
    assert splits.train.labels.tolist() == [0, 0, 1, 1]
    assert splits.train.owners == ("g08", "g09", "g08", "g09")
    assert splits.train.read(3).shape == (4, 8, 8, 3)
    assert ucf101(str(ucf), split=2).test.owners == ("g08", "g08")


def test_the_lists_may_lie_elsewhere(ucf: Path, tmp_path: Path) -> None:
    (tmp_path / "ucfTrainTestlist").rename(tmp_path / "lists")
    with pytest.raises(DataError, match=r"ucfTrainTestlist: no such folder; data\.lists names"):
        ucf101(str(ucf))
    assert len(ucf101(str(ucf), lists=str(tmp_path / "lists")).train) == 4


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (
            "trainlist01.txt",
            "Typing/v_Typing_g77_c01.avi 1\n",
            r"g77_c01\.avi: listed in trainlist01\.txt but not there",
        ),
        ("testlist01.txt", "Typing/typing.avi\n", r"testlist01\.txt: Typing/typing\.avi names no group"),
        ("testlist01.txt", "Running/v_Running_g01_c01.avi\n", r"is of no class of classInd\.txt"),
        ("classInd.txt", "", r"classInd\.txt: is empty"),
    ],
)
def test_a_wrong_list_is_named(ucf: Path, name: str, text: str, reason: str) -> None:
    (ucf.parent / "ucfTrainTestlist" / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        ucf101(str(ucf))


@pytest.mark.parametrize("dataset", [ucf101, hmdb51])
def test_there_are_three_splits(dataset: Callable[..., Splits], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^split must be between 1 and 3, got 4"):
        dataset(str(tmp_path), split=4)


def test_hmdb51_takes_1_for_training_2_for_test_and_leaves_0_out(tmp_path: Path) -> None:
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    for label in ("wave", "brush_hair"):
        lines = []
        for number, part in enumerate("1201"):
            write_video(tmp_path / label / f"#{number}_{label}_u_(x)&.avi", 50)
            lines.append(f"#{number}_{label}_u_(x)&.avi {part} \n")
        (lists / f"{label}_test_split1.txt").write_text("".join(lines))
        (lists / f"{label}_test_split2.txt").write_text(lines[0])
    splits = hmdb51(str(tmp_path), height=8, width=8)
    assert splits.train.classes == ("brush_hair", "wave")
    train, test = names(splits)
    assert [name[:2] for name in train] == ["#0", "#3", "#0", "#3"]
    assert [name[:2] for name in test] == ["#1", "#1"]
    assert splits.train.labels.tolist() == [0, 0, 1, 1]
    assert splits.train.read(0).shape == (4, 8, 8, 3)
    (lists / "wave_test_split1.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"wave_test_split1\.txt: 1 stands alone"):
        hmdb51(str(tmp_path))
    with pytest.raises(DataError, match=r"has no CLASS_test_split3\.txt"):
        hmdb51(str(tmp_path), split=3)


@pytest.fixture
def kinetics(tmp_path: Path) -> Path:
    lists = tmp_path / "annotations"
    lists.mkdir()
    header = f"{COLUMNS},split\n"
    (lists / "train.csv").write_text(
        header + "zumba,aaa,3,13,train\ntai chi,-b_b,0,10,train\ntai chi,ccc,100,110,train\nzumba,gone,1,11,train\n"
    )
    (lists / "validate.csv").write_text(header + "tai chi,ddd,7,17,validate\n")
    write_video(tmp_path / "train" / "zumba" / "aaa_000003_000013.mp4", 10)
    write_video(tmp_path / "train" / "tai_chi" / "-b_b_000000_000010.mp4", 10)
    write_video(tmp_path / "train" / "tai_chi" / "ccc.mkv", 10)
    write_video(tmp_path / "train" / "tai_chi" / "unlisted_000000_000010.mp4", 10)
    write_video(tmp_path / "val" / "ddd_000007_000017.mp4", 10)
    return tmp_path


def test_kinetics_takes_the_listed_videos_that_are_there(kinetics: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedssl"):
        splits = kinetics400(str(kinetics))
    assert splits.train.classes == ("tai chi", "zumba")
    assert names(splits) == (["aaa_000003_000013.mp4", "-b_b_000000_000010.mp4", "ccc.mkv"], ["ddd_000007_000017.mp4"])
    assert splits.train.labels.tolist() == [1, 0, 0]
    assert "train: 1 of 4 listed videos are not there" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("train.csv", "name,label\na,b\n", r"train\.csv: has no column youtube_id"),
        ("train.csv", f"{COLUMNS}\nzumba,aaa,x,13\n", r"train\.csv: cannot be read"),
        ("train.csv", f"{COLUMNS}\nzumba,zzz,1,13\n", "train: has none of the 1 listed videos"),
        ("validate.csv", f"{COLUMNS}\nyoga,ddd,7,17\n", "the class yoga has no training videos"),
    ],
)
def test_a_wrong_table_is_named(kinetics: Path, name: str, text: str, reason: str) -> None:
    (kinetics / "annotations" / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        kinetics400(str(kinetics))


def test_unreadable_videos_of_a_list_can_be_left_out(ucf: Path, caplog: pytest.LogCaptureFixture) -> None:
    (ucf / "Typing" / "v_Typing_g08_c01.avi").write_bytes(b"no video")
    splits = ucf101(str(ucf), skip_unreadable=True, cache=str(ucf.parent / "cache"))
    assert splits.train.labels.tolist() == [0, 1, 1]
    assert "left out" in caplog.text


def test_patients_can_be_held_out_where_hospitals_are_clients(tmp_path: Path) -> None:
    rows = ["file,label,hospital,patient\n"]
    for number in range(12):
        write_video(tmp_path / "a" / f"{number}.avi", 20 * number)
        rows.append(f"a/{number}.avi,a,hospital{number % 2},patient{number // 2}\n")
    (tmp_path / "metadata.csv").write_text("".join(rows))
    splits = video_folder(str(tmp_path), group="hospital", test_group="patient", test_owners=["patient1", "patient4"])
    assert names(splits)[1] == ["2.avi", "3.avi", "8.avi", "9.avi"]
    assert set(splits.train.owners) == {"hospital0", "hospital1"}
    with pytest.raises(ValueError, match=r"^test_group must be a column of metadata\.csv \(file, .*\), got ward"):
        video_folder(str(tmp_path), test_group="ward")


@pytest.mark.skipif(not LUNG.is_dir(), reason="the lung ultrasound videos are not here")
def test_lung_ultrasound_holds_out_patients_and_has_a_client_a_source() -> None:
    splits = video_folder(str(LUNG), group="source", test_group="patient_id", seed=3)
    assert len(splits.train) + len(splits.test) == 92
    assert len(set(splits.train.owners)) == 8
    assert set(splits.test.labels.tolist()) == {0, 1, 2}
