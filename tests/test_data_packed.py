import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import write_picture
from PIL import Image

from fedssl.data.arrays import ArrayDataset
from fedssl.data.pack import main
from fedssl.data.packed import packed
from fedssl.data.packed_file import read_packed, write_packed
from fedssl.errors import DataError

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 4, 6, 3)).astype(np.uint8)
LABELS = np.arange(20) % 2
CLASSES = np.array(["cat", "dog"])


def save(path: Path, **arrays: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def encode(images: NDArray[np.uint8], form: str = "PNG") -> dict[str, NDArray[np.generic]]:
    files = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, form)
        files.append(stream.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return {"jpegs": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(tmp_path / "cats.npz", images=PIXELS, labels=LABELS, classes=CLASSES)


def array(dataset: object) -> ArrayDataset:
    assert isinstance(dataset, ArrayDataset)
    return dataset


def test_a_file_without_a_test_part_is_split_by_label(file: Path) -> None:
    splits = packed(str(file), test_fraction=0.3)
    train, test = array(splits.train), array(splits.test)
    assert np.bincount(train.labels).tolist() == [7, 7]
    assert np.bincount(test.labels).tolist() == [3, 3]
    assert train.classes == ("cat", "dog")
    assert train.read(0).shape == (1, 4, 6, 3)
    found = {image.tobytes() for part in (train, test) for image in part.examples}
    assert found == {image.tobytes() for image in PIXELS}


def test_whole_owners_are_held_out_where_the_file_names_them(tmp_path: Path) -> None:
    owners = np.array([f"person{i // 4}" for i in range(20)])
    path = save(tmp_path / "a.npz", images=PIXELS, labels=LABELS, classes=CLASSES, owners=owners)
    splits = packed(str(path), test_fraction=0.4)
    assert len(set(splits.test.owners)) == 2
    assert not set(splits.test.owners) & set(splits.train.owners)
    assert len(splits.train) == 12


def test_a_folder_with_both_parts_keeps_them(tmp_path: Path) -> None:
    save(tmp_path / "train.npz", images=PIXELS, labels=LABELS, classes=CLASSES)
    save(tmp_path / "test.npz", images=PIXELS[:5], labels=LABELS[:5], classes=CLASSES)
    splits = packed(str(tmp_path))
    assert np.array_equal(array(splits.train).examples[:, 0], PIXELS)
    assert np.array_equal(array(splits.test).examples[:, 0], PIXELS[:5])


def test_encoded_images_give_the_same_as_their_pixels(tmp_path: Path, file: Path) -> None:
    coded = save(tmp_path / "coded.npz", **encode(PIXELS), labels=LABELS.astype(np.uint8), classes=CLASSES)
    for settings in ({}, {"channels": 1}, {"size": 3}, {"channels": 1, "size": 8, "num_train": 3}):
        first, second = packed(str(file), **settings), packed(str(coded), **settings)
        assert np.array_equal(array(first.train).examples, array(second.train).examples)
        assert np.array_equal(array(first.test).labels, array(second.test).labels)


def test_grey_images_need_no_axis_for_their_channel(tmp_path: Path) -> None:
    path = save(tmp_path / "grey.npz", images=PIXELS[..., 0], labels=LABELS, classes=CLASSES)
    assert packed(str(path), channels=1).train.read(0).shape == (1, 4, 6, 1)
    image = packed(str(path)).train.read(0)
    assert (image[..., 0] == image[..., 2]).all()


def test_limits_keep_balanced_parts_and_size_makes_squares(file: Path) -> None:
    splits = packed(str(file), num_train=6, num_test=2, size=8)
    assert np.bincount(splits.train.labels).tolist() == [3, 3]
    assert np.bincount(splits.test.labels).tolist() == [1, 1]
    assert splits.train.read(0).shape == (1, 8, 8, 3)


def test_the_split_and_the_limit_follow_the_seed(file: Path) -> None:
    first, again, other = (array(packed(str(file), num_train=4, seed=seed).train) for seed in (1, 1, 2))
    assert first.examples.tobytes() == again.examples.tobytes() != other.examples.tobytes()


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"test_fraction": 1.0}, "test_fraction must be above 0 and below 1, got 1.0"),
     ({"num_train": 0}, "num_train must be at least 1, got 0"), ({"size": 0}, "size must be at least 1, got 0"),
     ({"num_test": 5}, "num_test must be at most the 4 examples there are, got 5"),
     ({"channels": 4}, "channels must be 1 or 3, got 4")],
)  # fmt: skip
def test_a_bad_setting_is_named(file: Path, settings: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        packed(str(file), **settings)


GOOD = {"images": PIXELS, "labels": LABELS, "classes": CLASSES}
CODED = {**encode(PIXELS), "labels": LABELS, "classes": CLASSES}


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "has no labels"),
        ({"labels": LABELS}, "has no classes"),
        ({"labels": LABELS, "classes": CLASSES}, "has no images and no jpegs"),
        ({**GOOD, **CODED}, "has both images and jpegs"),
        ({**GOOD, "jpegs": CODED["jpegs"]}, "has no offsets"),
        ({**GOOD, "images": PIXELS / 255.0}, "images must be uint8 [n, height, width] or [n, height, width, 1 or 3], "
                                             "got float64 [20, 4, 6, 3]"),
        ({**GOOD, "images": PIXELS[..., :2]}, "images must be uint8 [n, height, width] or [n, height, width, 1 or 3], "
                                              "got uint8 [20, 4, 6, 2]"),
        ({**GOOD, "images": PIXELS[:0]}, "images must be uint8 [n, height, width] or [n, height, width, 1 or 3], "
                                         "got uint8 [0, 4, 6, 3]"),
        ({**GOOD, "labels": LABELS[:19]}, "labels must be integers [20], got int64 [19]"),
        ({**GOOD, "labels": LABELS / 1.0}, "labels must be integers [20], got float64 [20]"),
        ({**GOOD, "labels": LABELS * 2 - 1}, "labels must be 0 to 1, got -1 to 1"),
        ({**GOOD, "classes": np.arange(2)}, "classes must be names, got int64 [2]"),
        ({**GOOD, "owners": CLASSES}, "owners must be names [20], got <U3 [2]"),
        ({**GOOD, "labels": np.array([None] * 20)}, "labels cannot be read (Object arrays cannot be loaded when "
                                                    "allow_pickle=False)"),
        ({**CODED, "jpegs": CODED["jpegs"].astype(np.int64)}, "jpegs must be uint8 [bytes], got int64 "
                                                              f"[{len(CODED['jpegs'])}]"),
        ({**CODED, "offsets": np.zeros((2, 2))}, "offsets must be integers [n + 1], got float64 [2, 2]"),
        ({**CODED, "offsets": CODED["offsets"][::-1]}, "offsets must rise from 0 to at most the "
                                                       f"{len(CODED['jpegs'])} bytes of jpegs"),
        ({**CODED, "offsets": CODED["offsets"] + 1}, "offsets must rise from 0 to at most the "
                                                     f"{len(CODED['jpegs'])} bytes of jpegs"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_with_what_it_must_be(
    tmp_path: Path, arrays: dict[str, NDArray[np.generic]], text: str
) -> None:
    path = save(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(DataError) as caught:
        packed(str(path))
    assert str(caught.value) == f"{path}: {text}"


def test_a_file_that_is_missing_or_something_else_is_named(tmp_path: Path, file: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    np.save(tmp_path / "single.npy", PIXELS)
    (tmp_path / "half").write_bytes(file.read_bytes()[:700])
    damaged = bytearray(file.read_bytes())
    damaged[300] ^= 255
    (tmp_path / "damaged").write_bytes(damaged)
    reasons = {
        "nowhere": "no such file",
        "text": "is no npz archive, or a damaged one",
        "half": "is no npz archive, or a damaged one",
        "single.npy": "is a single array, not an npz archive",
        "damaged": "images cannot be read (Bad CRC-32 for file 'images.npy')",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError) as caught:
            packed(str(tmp_path / name))
        assert str(caught.value) == f"{tmp_path / name}: {reason}"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty/train\.npz: no such file$"):
        packed(str(tmp_path / "empty"))


def test_an_encoded_image_that_is_damaged_or_of_another_size_is_named(tmp_path: Path) -> None:
    coded = encode(PIXELS)
    jpegs = coded["jpegs"].copy()
    jpegs[int(coded["offsets"][3]) : int(coded["offsets"][3]) + 8] = 0
    path = save(tmp_path / "a.npz", jpegs=jpegs, offsets=coded["offsets"], labels=LABELS, classes=CLASSES)
    with pytest.raises(DataError, match=r"a\.npz: image 3 of jpegs: cannot be read as an image"):
        packed(str(path))
    small, large = encode(PIXELS[:10]), encode(np.zeros((10, 5, 5, 3), np.uint8))
    both = np.concatenate([small["jpegs"], large["jpegs"]])
    offsets = np.concatenate([small["offsets"], small["offsets"][-1] + large["offsets"][1:]])
    path = save(tmp_path / "b.npz", jpegs=both, offsets=offsets, labels=LABELS, classes=CLASSES)
    with pytest.raises(DataError, match=r"image \d+ of jpegs: images of several sizes \(5x5 and 4x6\) need size=N"):
        packed(str(path))
    assert packed(str(path), size=4).train.read(0).shape == (1, 4, 4, 3)


def test_other_classes_in_the_test_part_are_named(tmp_path: Path) -> None:
    save(tmp_path / "train.npz", **GOOD)
    save(tmp_path / "test.npz", **{**GOOD, "classes": np.array(["dog", "cat"])})
    with pytest.raises(DataError, match=r"test\.npz: classes must be those of train\.npz, got dog, cat$"):
        packed(str(tmp_path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        write_picture(tmp_path / "in" / "dark" / f"{number}.png", (number, 20, 30))
        write_picture(tmp_path / "in" / "light" / f"{number}.png", (200 + number, 210, 220))
    return tmp_path / "in"


def test_a_folder_becomes_a_file_that_numpy_alone_can_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.npz"
    assert main([str(folder), str(target)]) == 0
    assert capsys.readouterr().out == f"{target}: 6 images of 6x10x3, 2 classes\n"
    with np.load(target, allow_pickle=False) as archive:
        assert sorted(archive.files) == ["classes", "images", "labels"]
        assert archive["images"].shape == (6, 6, 10, 3)
        assert archive["images"][1, 0, 0].tolist() == [1, 20, 30]
        assert archive["labels"].tolist() == [0, 0, 0, 1, 1, 1]
        assert archive["classes"].tolist() == ["dark", "light"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.npz"]
    assert len(packed(str(target)).train) == 4


def test_owners_come_from_the_table_and_sizes_and_channels_from_the_options(folder: Path, tmp_path: Path) -> None:
    rows = "".join(f"{name}/{i}.png,{name},person{i}\n" for name in ("dark", "light") for i in range(3))
    (folder / "metadata.csv").write_text("file,label,person\n" + rows)
    target = tmp_path / "out"
    assert main([str(folder), str(target), "--size", "4", "--channels", "1", "--group", "person"]) == 0
    held = read_packed(target)
    assert np.shape(held.images) == (6, 4, 4, 1)
    assert held.owners == ("person0", "person1", "person2") * 2


def test_an_npz_file_is_converted(tmp_path: Path) -> None:
    source, target = save(tmp_path / "coded.npz", **CODED), tmp_path / "out.npz"
    assert main([str(source), str(target)]) == 0
    assert np.array_equal(read_packed(target).images, PIXELS)
    assert main([str(target), str(target), "--size", "3"]) == 0
    assert np.shape(read_packed(target).images) == (20, 3, 3, 3)


def test_bad_input_is_one_line_and_no_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.npz"
    write_picture(folder / "light" / "9.png", (1, 2, 3), 7, 7)
    cases = {
        (str(folder),): f"{folder}/light/9.png: is 7x7, not the 6x10 of the first image; images of several sizes need "
        "--size N",
        (str(folder), "--size", "0"): "size must be at least 1, got 0",
        (str(folder), "--group", "a"): "group must be null in a folder without metadata.csv, got a",
        (str(tmp_path / "no"),): f"{tmp_path}/no: no such file",
        (str(save(tmp_path / "a.npz", **GOOD)), "--group", "a"): "group must be left out for a file, got a",
    }
    for (source, *options), text in cases.items():
        assert main([source, str(target), *options]) == 2
        assert capsys.readouterr().err == text + "\n"
    assert not target.exists()
    assert main([str(folder), str(tmp_path / "none" / "out.npz")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none: no such folder\n"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.npz"
    write_packed(target, PIXELS, LABELS, ("cat", "dog"), ("",) * 20)
    before = target.read_bytes()

    def fail(stream: io.BufferedWriter, **_: object) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        write_packed(target, PIXELS, LABELS, ("cat", "dog"), ("",) * 20)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="the packed CIFAR-10 is not here")
def test_the_packed_cifar10_has_its_classes_and_pixels() -> None:
    splits = packed(str(SHARED / "cifar10"), num_train=100, num_test=500)
    test = array(splits.test)
    assert np.bincount(splits.train.labels).tolist() == [10] * 10
    assert test.classes[:2] == ("airplane", "automobile")
    assert test.examples.shape == (500, 1, 32, 32, 3)
    assert np.abs(test.examples.mean(axis=(0, 1, 2, 3)) / 255 - [0.494, 0.485, 0.450]).max() < 0.03


@pytest.mark.skipif(not (SHARED / "fashion_mnist").is_dir(), reason="the packed Fashion-MNIST is not here")
def test_the_packed_fashion_mnist_is_whole() -> None:
    test = array(packed(str(SHARED / "fashion_mnist"), num_train=10, channels=1).test)
    assert test.examples.shape == (10000, 1, 28, 28, 1)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.classes[9] == "Ankle boot"
    assert test.examples.mean() / 255 == pytest.approx(0.2868, abs=1e-4)
