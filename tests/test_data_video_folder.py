import logging
from pathlib import Path

import numpy as np
import pytest
from videos import write_video

from fedssl.data.video_folder import video_folder
from fedssl.errors import DataError

WEIZMANN = Path(__file__).resolve().parents[2] / "shared/data/video/weizmann"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(5):
        write_video(tmp_path / "dark" / f"{number}.mp4", 40)
        write_video(tmp_path / "light" / f"{number}.avi", 200)
    (tmp_path / "light" / "notes.txt").write_text("not a video")
    return tmp_path


@pytest.fixture
def table(folder: Path) -> Path:
    rows = [f"dark/{i}.mp4,dark,person{i}\nlight/{i}.avi,light,person{i}\n" for i in range(5)]
    (folder / "metadata.csv").write_text("file,label,person\n" + "".join(rows))
    return folder


def test_class_folders_give_the_labels(folder: Path) -> None:
    splits = video_folder(str(folder), height=8, width=12)
    assert splits.train.classes == ("dark", "light")
    assert np.bincount(splits.train.labels).tolist() == [4, 4]
    assert np.bincount(splits.test.labels).tolist() == [1, 1]
    assert set(splits.train.owners) == {""}
    for index, label in enumerate(splits.train.labels):
        clip = splits.train.read(index)
        assert clip.shape == (4, 8, 12, 3)
        assert clip.dtype == np.uint8
        assert abs(float(clip.mean()) - (40, 200)[label]) < 8


def test_grey_frames_have_one_channel_and_the_first_frames_can_be_enough(folder: Path) -> None:
    clip = video_folder(str(folder), height=8, width=8, channels=1, max_frames=2).train.read(0)
    assert clip.shape == (2, 8, 8, 1)
    assert abs(float(clip.mean()) - 40) < 12


def test_a_video_is_decoded_once(folder: Path) -> None:
    train = video_folder(str(folder)).train
    assert train.read(0) is train.read(0)


def test_whole_owners_are_held_out(table: Path) -> None:
    splits = video_folder(str(table), group="person", test_fraction=0.4)
    assert len(set(splits.test.owners)) == 2
    assert not set(splits.test.owners) & set(splits.train.owners)
    assert splits.test.owners == video_folder(str(table), group="person", test_fraction=0.4).test.owners


def test_the_named_owners_are_held_out(table: Path) -> None:
    splits = video_folder(str(table), group="person", test_owners=["person3"])
    assert splits.test.owners == ("person3", "person3")
    assert splits.test.labels.tolist() == [0, 1]
    assert len(splits.train) == 8


def test_an_unknown_owner_is_answered_with_the_allowed_ones(table: Path) -> None:
    with pytest.raises(ValueError, match=r"test_owners must be among person0, .*person4, got nobody"):
        video_folder(str(table), group="person", test_owners=["nobody"])


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"group": "hospital"}, "group"), ({"test_owners": ["person0"]}, "test_owners"), ({"height": 0}, "height"),
     ({"channels": 4}, "channels"), ({"max_frames": -1}, "max_frames"), ({"test_fraction": 1.5}, "test_fraction"),
     ({"group": "person", "test_owners": [f"person{i}" for i in range(5)]}, "test_owners")],
)  # fmt: skip
def test_a_bad_setting_is_named(table: Path, settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must "):
        video_folder(str(table), **settings)


def test_owners_need_a_table(folder: Path) -> None:
    with pytest.raises(ValueError, match="group must be null in a folder without"):
        video_folder(str(folder), group="person")


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        video_folder(str(tmp_path / "nowhere"))
    (tmp_path / "class").mkdir()
    with pytest.raises(DataError, match=f"^{tmp_path}: has no videos"):
        video_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("name,label\n", "has no column file"), ("file,label\ndark/0.mp4,\n", "row 1 has no label"),
     ("file,label\n", "has no videos"), ("file,label\ndark/9.mp4,dark\n", "dark/9.mp4: listed in metadata.csv"),
     ("file,label\ndark/0.mp4,dark\ndark/0.mp4,dark\n", "lists dark/0.mp4 twice")],
)  # fmt: skip
def test_a_malformed_table_is_named(folder: Path, text: str, reason: str) -> None:
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        video_folder(str(folder))


@pytest.mark.parametrize("content", [b"this is no video", b""], ids=["corrupt", "empty"])
def test_an_unreadable_video_is_named_when_it_is_read(folder: Path, content: bytes) -> None:
    (folder / "dark" / "broken.mp4").write_bytes(content)
    splits = video_folder(str(folder))
    with pytest.raises(DataError, match=r"dark/broken\.mp4: cannot be read as a video") as caught:
        _ = [part.read(index) for part in (splits.train, splits.test) for index in range(len(part))]
    assert "\n" not in str(caught.value)


def test_unreadable_videos_can_be_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "dark" / "broken.mp4").write_bytes(b"this is no video")
    with caplog.at_level(logging.WARNING, "fedssl"):
        splits = video_folder(str(folder), skip_unreadable=True)
    assert len(splits.train) + len(splits.test) == 10
    assert [record.name for record in caplog.records] == ["fedssl"]
    assert "dark/broken.mp4" in caplog.text


def test_a_folder_of_unreadable_videos_is_named(tmp_path: Path) -> None:
    (tmp_path / "dark").mkdir()
    (tmp_path / "dark" / "broken.mp4").write_bytes(b"this is no video")
    with pytest.raises(DataError, match="none of its 1 videos can be read"):
        video_folder(str(tmp_path), skip_unreadable=True)


@pytest.mark.skipif(not WEIZMANN.is_dir(), reason="the Weizmann videos are not here")
def test_the_weizmann_actions_split_by_person() -> None:
    splits = video_folder(str(WEIZMANN), group="subject", test_owners=["lena"])
    assert (len(splits.train), len(splits.test)) == (72, 11)
    assert len(splits.train.classes) == 9
    assert len(set(splits.train.owners)) == 8
    assert splits.train.read(0).shape == (84, 64, 64, 3)
