import io
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pictures import write_picture
from PIL import Image

from fedssl.data.image_files import convert, decode
from fedssl.data.image_folder import image_folder
from fedssl.data.subset import balanced
from fedssl.errors import DataError

DARK, LIGHT = (40, 40, 40), (200, 210, 220)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(5):
        write_picture(tmp_path / "dark" / f"{number}.png", DARK)
        write_picture(tmp_path / "light" / f"{number}.JPG", LIGHT)
    (tmp_path / "light" / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.fixture
def table(folder: Path) -> Path:
    rows = [f"dark/{i}.png,dark,person{i}\nlight/{i}.JPG,light,person{i}\n" for i in range(5)]
    (folder / "metadata.csv").write_text("file,label,person\n" + "".join(rows))
    return folder


def test_class_folders_give_the_labels_and_images_are_clips_of_one_frame(folder: Path) -> None:
    splits = image_folder(str(folder), height=8, width=12)
    assert splits.train.classes == ("dark", "light")
    assert np.bincount(splits.train.labels).tolist() == [4, 4]
    assert np.bincount(splits.test.labels).tolist() == [1, 1]
    for index, label in enumerate(splits.train.labels):
        image = splits.train.read(index)
        assert image.shape == (1, 8, 12, 3)
        assert image.dtype == np.uint8
        assert np.abs(image - np.array((DARK, LIGHT)[label], np.float64)).max() <= 3


def test_an_image_is_decoded_once(folder: Path) -> None:
    train = image_folder(str(folder)).train
    assert train.read(0) is train.read(0)
    assert not train.read(0).flags.writeable


def test_whole_or_named_owners_are_held_out(table: Path) -> None:
    splits = image_folder(str(table), group="person", test_fraction=0.4)
    assert len(set(splits.test.owners)) == 2
    assert not set(splits.test.owners) & set(splits.train.owners)
    assert image_folder(str(table), group="person", test_owners=["person3"]).test.owners == ("person3", "person3")


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"group": "hospital"}, "group"), ({"test_owners": ["person0"]}, "test_owners"), ({"width": 0}, "width"),
     ({"channels": 4}, "channels"), ({"test_fraction": 0.0}, "test_fraction")],
)  # fmt: skip
def test_a_bad_setting_of_a_folder_is_named(table: Path, settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must "):
        image_folder(str(table), **settings)


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        image_folder(str(tmp_path / "nowhere"))
    (tmp_path / "class").mkdir()
    with pytest.raises(DataError, match=f"^{tmp_path}: has no images, neither"):
        image_folder(str(tmp_path))


@pytest.mark.parametrize("content", [b"this is no image", b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_image_is_named_when_it_is_read_or_left_out(
    folder: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "dark" / "broken.png").write_bytes(content)
    splits = image_folder(str(folder))
    with pytest.raises(DataError, match=r"dark/broken\.png: cannot be read as an image") as caught:
        _ = [part.read(index) for part in (splits.train, splits.test) for index in range(len(part))]
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "fedssl"):
        splits = image_folder(str(folder), skip_unreadable=True)
    assert len(splits.train) + len(splits.test) == 10
    assert "dark/broken.png" in caplog.text


def encoded(image: Image.Image, **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return io.BytesIO(stream.getvalue())


def test_a_truncated_image_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image"):
        decode(path, str(path), 3, None)


def test_an_image_is_turned_as_its_camera_says() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is stored at the top left belongs to the top right
    turned = decode(encoded(Image.fromarray(pixels), exif=exif), "a", 3, None)
    assert turned.shape == (3, 2, 3)
    assert turned[0, 1].tolist() == [255] * 3
    assert turned.sum() == 3 * 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_every_mode_of_8_bits_becomes_rgb_or_grey(mode: str) -> None:
    image = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    assert decode(encoded(image), "a", 3, None).tolist() == np.full((3, 4, 3), 255).tolist()
    assert decode(encoded(image), "a", 1, (2, 2)).tolist() == np.full((2, 2, 1), 255).tolist()


def test_16_bits_are_refused_rather_than_cut_off() -> None:
    image = Image.fromarray(np.full((3, 4), 5000, np.uint16))
    with pytest.raises(DataError, match=r"^a: cannot be read as an image \(it has more than 8 bits a channel\)$"):
        decode(encoded(image), "a", 1, None)


def test_grey_is_the_luma_and_grey_becomes_rgb_by_repetition() -> None:
    rgb = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]], np.uint8)
    grey = convert(rgb, 1, None)
    assert grey[0, 0, :, 0].tolist() == [76, 150, 29]  # 0.299, 0.587 and 0.114 of 255
    assert convert(grey, 3, None)[0, 0].tolist() == [[76] * 3, [150] * 3, [29] * 3]
    assert convert(rgb, 3, (1, 3)) is rgb


def test_halving_an_image_averages_its_pixels() -> None:
    rows = np.repeat(np.array([0, 100, 200, 100], np.uint8), 4).reshape(1, 4, 4, 1)
    # a triangle two pixels wide on each side: (3 * 0 + 3 * 100 + 200) / 7 and (100 + 3 * 200 + 3 * 100) / 7
    assert convert(rows, 1, (2, 4))[0, :, 0, 0].tolist() == [71, 143]
    assert convert(np.full((2, 5, 7, 3), 9, np.uint8), 3, (3, 2)).tolist() == np.full((2, 3, 2, 3), 9).tolist()


def test_a_subset_has_as_many_of_each_class() -> None:
    labels = np.array([0] * 50 + [1] * 30 + [2] * 3, np.int64)
    chosen = balanced(labels, 23, "num_train", np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [10, 10, 3]
    assert (np.diff(chosen) > 0).all()


def test_a_smaller_subset_is_part_of_a_larger_one() -> None:
    labels = np.arange(100) % 7
    sets = [set(balanced(labels, n, "n", np.random.default_rng(3)).tolist()) for n in range(1, 101)]
    assert [len(chosen) for chosen in sets] == list(range(1, 101))
    assert all(small < large for small, large in pairwise(sets))
    counts = [np.bincount(labels[list(chosen)], minlength=7) for chosen in sets[:98]]
    assert all(np.ptp(count) <= 1 for count in counts)


def test_a_subset_larger_than_the_whole_is_named() -> None:
    with pytest.raises(ValueError, match=r"^num_test must be at most the 3 examples there are, got 4$"):
        balanced(np.zeros(3, np.int64), 4, "num_test", np.random.default_rng(0))
