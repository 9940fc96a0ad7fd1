"""Torchvision's datasets, read from tiny files of their formats."""

import ast
import gzip
import io
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torchvision
from numpy.typing import NDArray
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, STL10, SVHN

import fedssl.data.torchvision_images as module
from fedssl.data.torchvision_images import torchvision_images
from fedssl.errors import DataError

RNG = np.random.default_rng(0)


def cifar_files(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> NDArray[np.uint8]:
    """Write 20 training and 10 test images; return the training images `[n, h, w, c]`."""
    fine = name == "cifar100"
    kind = CIFAR100 if fine else CIFAR10
    key, names = ("fine_labels", "fine_label_names") if fine else ("labels", "label_names")
    base = root / kind.base_folder
    base.mkdir(parents=True)
    batches = [("train", 10), ("more", 10)] if not fine else [("train", 20)]
    pixels = RNG.integers(0, 256, (30, 3072)).astype(np.uint8)
    place = 0
    for file, number in [*batches, ("test", 10)]:
        entry = {"data": pixels[place : place + number], key: [i % 10 for i in range(number)]}
        (base / file).write_bytes(pickle.dumps(entry))
        place += number
    (base / "meta").write_bytes(pickle.dumps({names: [f"class{i}" for i in range(10)]}))
    monkeypatch.setattr(kind, "train_list", [[file, None] for file, _ in batches])
    monkeypatch.setattr(kind, "test_list", [["test", None]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": names, "md5": None})
    return pixels[:20].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def svhn_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    images = RNG.integers(0, 256, (30, 32, 32, 3)).astype(np.uint8)
    labels = np.array([i % 10 or 10 for i in range(30)], np.uint8)[:, None]  # the files call the digit 0 "10"
    for part, chosen in (("train", slice(20)), ("test", slice(20, 30))):
        savemat(root / f"{part}.mat", {"X": images[chosen].transpose(1, 2, 3, 0), "y": labels[chosen]})
    monkeypatch.setattr(SVHN, "split_list", {part: ["", f"{part}.mat", None] for part in ("train", "test")})
    return images[:20]


def stl_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    base = root / "stl10_binary"
    base.mkdir()
    images = RNG.integers(0, 256, (30, 96, 96, 3)).astype(np.uint8)
    for part, chosen in (("train", slice(20)), ("test", slice(20, 30)), ("unlabeled", slice(5))):
        (base / f"{part}_X.bin").write_bytes(images[chosen].transpose(0, 3, 2, 1).tobytes())
    (base / "train_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(20)))
    (base / "test_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(10)))
    (base / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    train = [["train_X.bin", None], ["train_y.bin", None], ["unlabeled_X.bin", None]]
    monkeypatch.setattr(STL10, "train_list", train)
    monkeypatch.setattr(STL10, "test_list", [["test_X.bin", None], ["test_y.bin", None]])
    return images[:20]


def idx(array: NDArray[np.uint8]) -> bytes:
    shape = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def mnist_files(root: Path, name: str) -> NDArray[np.uint8]:
    base = root / ("MNIST" if name == "mnist" else "FashionMNIST") / "raw"
    base.mkdir(parents=True)
    images = RNG.integers(0, 256, (30, 28, 28)).astype(np.uint8)
    labels = np.arange(30, dtype=np.uint8) % 10
    for part, chosen in (("train", slice(20)), ("t10k", slice(20, 30))):
        (base / f"{part}-images-idx3-ubyte").write_bytes(idx(images[chosen]))
        (base / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[chosen]))
    return images[:20, :, :, None]


def write_files(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    if name.startswith("cifar"):
        return cifar_files(root, monkeypatch, name)
    if name == "svhn":
        return svhn_files(root, monkeypatch)
    return stl_files(root, monkeypatch) if name == "stl10" else mnist_files(root, name)


NAMES = list(module.SOURCES)


@pytest.mark.parametrize("name", NAMES)
def test_files_of_a_dataset_become_clips_of_one_frame(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_files(name, tmp_path, monkeypatch)
    splits = torchvision_images(name, str(tmp_path), channels=images.shape[-1])
    assert (len(splits.train), len(splits.test)) == (20, 10)
    assert splits.train.labels.tolist() == [i % 10 for i in range(20)]
    assert len(splits.train.classes) == 10
    assert set(splits.test.owners) == {""}
    for index in (0, 19):
        assert np.array_equal(splits.train.read(index), images[index][None])


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_a_limit_keeps_a_balanced_seeded_part(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(name, tmp_path, monkeypatch)
    first, again, other = (torchvision_images(name, str(tmp_path), 10, 5, 1, seed).train for seed in (0, 0, 1))
    assert sorted(first.labels.tolist()) == list(range(10))
    assert first.read(0).shape[-1] == 1
    assert first.examples.tobytes() == again.examples.tobytes() != other.examples.tobytes()


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"num_train": 0}, "num_train must be at least 1, got 0"),
     ({"num_test": -1}, "num_test must be at least 1, got -1"),
     ({"channels": 2}, "channels must be 1 or 3, got 2"),
     ({"num_train": 21}, "num_train must be at most the 20 examples there are, got 21"),
     ({"num_test": 11}, "num_test must be at most the 10 examples there are, got 11")],
)  # fmt: skip
def test_a_bad_setting_of_a_dataset_is_named(
    settings: dict[str, int], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files("mnist", tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=f"^{text}$"):
        torchvision_images("mnist", str(tmp_path), **settings)


def offline(*_: object, **__: object) -> None:
    raise URLError("no route to host")


@pytest.mark.parametrize("name", NAMES)
def test_without_files_and_network_one_line_says_what_is_missing_and_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DataError) as caught:
        torchvision_images(name, str(tmp_path / "new"))
    text, source = str(caught.value), module.SOURCES[name]
    place = tmp_path / "new" / source.files
    assert text.startswith(
        f"{source.title} is not there or damaged ({place}), and cannot be downloaded: the network did"
    )
    assert "\n" not in text
    assert list((tmp_path / "new").iterdir()) == []


def test_a_server_that_refuses_is_told_from_a_network_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise HTTPError("http://x", 404, "Not Found", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match=r"cannot be downloaded: HTTP Error 404: Not Found$"):
        torchvision_images("svhn", str(tmp_path))


def archive_of(folder: Path, name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(folder / name, name)
    return stream.getvalue()


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], bytes]) -> None:
    def retrieve(url: str, filename: str) -> None:
        Path(filename).write_bytes(answer(url))

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", retrieve)


def test_a_download_arrives_whole_and_leaves_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = cifar_files(tmp_path / "server", monkeypatch, "cifar10")
    monkeypatch.setattr(CIFAR10, "tgz_md5", None)
    served = archive_of(tmp_path / "server", CIFAR10.base_folder)
    serve(monkeypatch, lambda url: served)
    splits = torchvision_images("cifar10", str(tmp_path / "here"))
    assert np.array_equal(splits.train.read(3), images[3][None])
    found = sorted(str(path.relative_to(tmp_path / "here")) for path in (tmp_path / "here").rglob("*"))
    assert found == [
        CIFAR10.base_folder,
        *(f"{CIFAR10.base_folder}/{file}" for file in ("meta", "more", "test", "train")),
    ]
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", offline)
    assert len(torchvision_images("cifar10", str(tmp_path / "here")).train) == 20


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_download_that_breaks_off_leaves_nothing(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server").mkdir()
    mnist_files(tmp_path / "server", "mnist")
    asked: list[str] = []

    def answer(url: str) -> bytes:
        asked.append(url)
        if len(asked) > cut:
            raise URLError("broken off")
        return gzip.compress((tmp_path / "server/MNIST/raw" / Path(url).stem).read_bytes())

    serve(monkeypatch, answer)
    plain = [(name, None) for name, _ in torchvision.datasets.MNIST.resources]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", plain)
    with pytest.raises(DataError, match="MNIST is not there or damaged"):
        torchvision_images("mnist", str(tmp_path / "here"))
    assert list((tmp_path / "here").iterdir()) == []


def test_a_damaged_file_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = mnist_files(tmp_path / "server", "mnist")
    shutil.copytree(tmp_path / "server", tmp_path / "here")
    damaged = tmp_path / "here/MNIST/raw/train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    served = tmp_path / "server/MNIST/raw"
    serve(monkeypatch, lambda url: gzip.compress((served / Path(url).stem).read_bytes()))
    plain = [(name, None) for name, _ in torchvision.datasets.MNIST.resources]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", plain)
    splits = torchvision_images("mnist", str(tmp_path / "here"), channels=1)
    assert np.array_equal(splits.train.read(7), images[7][None])
    assert damaged.read_bytes() == (served / damaged.name).read_bytes()


def test_torchvision_is_imported_when_it_is_needed() -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    names = [
        getattr(node, "module", None) or node.names[0].name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not [name for name in names if name.startswith("torchvision")]
