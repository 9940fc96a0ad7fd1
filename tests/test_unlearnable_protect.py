"""The command that writes a protected copy: what it writes keeps the budget when it is read, and what it refuses."""

import json
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from pictures import write_picture
from PIL import Image
from tiny_victim import Images, digits16
from videos import write_video

from fedssl.data.image_files import decode
from fedssl.data.image_folder import image_folder
from fedssl.data.packed_file import read_packed, write_packed
from fedssl.data.video import VideoDecoder
from fedssl.privacy.unlearnable.__main__ import main
from fedssl.privacy.unlearnable.noise import read_noise
from fedssl.privacy.unlearnable.source import most_common

FEW = ("min_rounds=2", "max_rounds=2")


def write_folder(root: Path, number: int = 12) -> list[str]:
    """Write digits in class folders, every third one larger; return their names without endings."""
    images, labels, _, _ = digits16()
    names = []
    for place, (image, label) in enumerate(zip(images[:number], labels[:number] % 2, strict=True)):
        names.append(f"{label}/{place:02}")
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image[..., 0]).convert("RGB")
        picture.resize((20, 24) if place % 3 == 0 else (16, 16)).save(root / f"{names[-1]}.jpg", quality=95)
    return sorted(names)


def run(*words: object) -> int:
    return main(["protect", *map(str, words)])


def pairs(root: Path, out: Path, names: list[str]) -> list[tuple[Images, Images]]:
    return [(decode(root / f"{n}.jpg", n, 3, None), decode(out / f"{n}.png", n, 3, None)) for n in names]


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line.strip()


def test_images_that_are_read_back_changed_by_the_noise_and_no_more_than_the_budget(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    names = write_folder(root)
    assert run(root, out, "protection=random_class", "budget=6", "--seed", 3) == 0
    noise = read_noise(out / "noise.npz")
    assert noise.patterns.shape == (2, 16, 16, 3)
    assert noise.rows.tolist() == [int(name[0]) for name in names]
    sizes, largest = set(), 0
    for example, (before, after) in enumerate(pairs(root, out, names)):
        sizes.add(after.shape)
        largest = max(largest, np.abs(after.astype(int) - before).max())
        if after.shape == (16, 16, 3):
            pattern = noise.patterns[noise.rows[example]]
            assert (after == np.clip(before + pattern, 0, 255)).all()
    assert largest == 6
    assert sizes == {(16, 16, 3), (24, 20, 3)}
    assert sorted(path.name for path in out.iterdir()) == ["0", "1", "noise.npz", "picture.png", "protection.json"]
    record = json.loads((out / "protection.json").read_text())
    asked = record["asked"]
    assert (asked["protection"], asked["protection.budget"], asked["seed"], asked["size"]) == (
        "random_class",
        6,
        3,
        [16, 16],
    )
    assert (record["budget"], record["examples"], record["patterns"], record["finished"]) == (6, 12, 2, True)
    with Image.open(out / "picture.png") as shown:
        assert shown.width > shown.height > 100
    assert len(image_folder(str(out), height=16, width=16).train.labels) > 0


def test_a_second_call_writes_what_is_missing_and_leaves_the_rest(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    names = write_folder(root)
    order = (root, out, "protection=em_class", "width=4", *FEW)
    assert run(*order) == 0
    files = [out / f"{name}.png" for name in names]
    before = [path.read_bytes() for path in files]
    noise = (out / "noise.npz").read_bytes()
    times = files[1].stat().st_mtime_ns
    files[0].unlink()
    (out / "0" / ".x.png.partial").write_bytes(b"half")
    assert run(*order) == 0
    assert [path.read_bytes() for path in files] == before
    assert (out / "noise.npz").read_bytes() == noise
    assert files[1].stat().st_mtime_ns == times


def test_the_same_call_writes_the_same_bytes_into_another_folder(tmp_path: Path) -> None:
    root = tmp_path / "in"
    names = write_folder(root)
    for name in ("a", "b"):
        assert run(root, tmp_path / name, "protection=em_cluster", "num_clusters=2", "width=4", *FEW) == 0
    assert all((tmp_path / "a" / f"{n}.png").read_bytes() == (tmp_path / "b" / f"{n}.png").read_bytes() for n in names)
    first, second = (json.loads((tmp_path / n / "protection.json").read_text()) for n in "ab")
    assert first["digest"] == second["digest"]


def test_a_flat_folder_of_grey_images_stays_flat_and_grey(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    for place, image in enumerate(digits16()[0][:3]):
        Image.fromarray(image[..., 0]).save(root / f"{place}.png")
    assert run(root, out, "protection=random_sample", "--size", 8) == 0
    with Image.open(out / "1.png") as image:
        assert image.mode == "L"
        assert 0 < np.abs(np.array(image).astype(int) - digits16()[0][1, ..., 0]).max() <= 8
    assert read_noise(out / "noise.npz").patterns.shape == (3, 8, 8, 1)


def test_a_table_of_labels_goes_along_with_the_new_names(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    write_picture(root / "x" / "a.bmp", (100, 120, 140))
    write_picture(root / "b.bmp", (10, 120, 140))
    (root / "metadata.csv").write_text("file,label,owner\nx/a.bmp,cat,eve\nb.bmp,dog,bob\n")
    assert run(root, out, "protection=random_class") == 0
    assert (out / "metadata.csv").read_text().split() == ["file,label,owner", "x/a.png,cat,eve", "b.png,dog,bob"]
    assert (out / "x" / "a.png").is_file()


def test_a_packed_file_stays_packed(tmp_path: Path) -> None:
    images, labels, _, _ = digits16()
    write_packed(tmp_path / "in.npz", images[:20], labels[:20], [str(n) for n in range(10)], ["eve"] * 20)
    assert run(tmp_path / "in.npz", tmp_path / "out", "protection=lsp") == 0
    packed = read_packed(tmp_path / "out" / "packed.npz")
    assert np.abs(np.asarray(packed.images).astype(int) - images[:20]).max() == 8
    assert (packed.labels == labels[:20]).all()
    assert packed.owners == ("eve",) * 20


@pytest.mark.parametrize("grey", [False, True])
def test_videos_that_are_read_back_carry_one_pattern_on_all_frames(tmp_path: Path, grey: bool) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    for place in range(2):
        write_video(root / str(place) / "v.avi", 90 + 40 * place)
    if grey:
        for path in root.glob("*/*"):
            _write_grey(path)
    assert run(root, out, "protection=random_class", "budget=5") == 0
    noise = read_noise(out / "noise.npz")
    channels = 1 if grey else 3
    read = VideoDecoder(16, 32, channels)
    assert noise.patterns.shape == (2, 16, 32, channels)
    for place in range(2):
        before = read(root / str(place) / "v.avi").astype(int)
        after = read(out / str(place) / "v.mkv").astype(int)
        assert len(after) == 4
        assert (after - before == noise.patterns[place]).all()
    with av.open(str(out / "0" / "v.mkv")) as container:
        assert container.streams.video[0].average_rate == 10


def _write_grey(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "gray"
        for level in range(100, 104):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((16, 32), level, np.uint8), format="gray")))
        container.mux(stream.encode())


def test_a_video_of_a_camera_held_upright_is_kept_upright(tmp_path: Path) -> None:
    path = tmp_path / "in" / "0" / "v.mp4"
    write_video(path, 90)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # of the track: a, b, u, c, d, v, x, y, w
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 2**30)
    path.write_bytes(content)
    assert run(tmp_path / "in", tmp_path / "out", "protection=random_class", "budget=5") == 0
    noise, read = read_noise(tmp_path / "out" / "noise.npz"), VideoDecoder(32, 16, 3)
    assert noise.patterns.shape == (1, 32, 16, 3)
    after = read(tmp_path / "out" / "0" / "v.mkv").astype(int)
    assert (after - read(path) == noise.patterns[0]).all()


def test_the_most_common_size_is_taken_and_of_several_the_largest() -> None:
    assert most_common([(8, 8), (4, 4), (4, 4)]) == (4, 4)
    assert most_common([(8, 8), (4, 4)]) == (8, 8)


def test_other_settings_and_other_content_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    write_folder(root)
    assert run(root, out, "protection=random_class") == 0
    capsys.readouterr()
    assert run(root, out, "protection=random_class", "protection.budget=4") == 2
    assert error_of(capsys) == f"{out}: was begun with protection.budget=8, not 4; take another folder"
    (root / "0" / "new.png").write_bytes((out / "picture.png").read_bytes())
    assert run(root, out, "protection=random_class") == 2
    assert "was begun with source=" in error_of(capsys)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    assert run(root, tmp_path / "full") == 2
    assert "is not empty and has no protection.json of an earlier call" in error_of(capsys)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["protection=lsp", "budge=4"], "protection.budge=4: no such setting; allowed: budget"),
        (["protection=lsp", "budget=400"], "protection.budget=400: must be between 1 and 255"),
        (["protection=fog"], "protection=fog: no such option; allowed: "),
        (["protection=none"], "protection=none: leaves images as they are"),
        (["num_clusters=99"], "num_clusters must be between 1 and 12, got 99"),
        (["--size", "0"], "size must be at least 1, got 0"),
        (["--device", "tricorder"], "device=tricorder: cannot be used"),
    ],
)
def test_a_bad_word_is_one_line_and_leaves_nothing_behind(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out", *words) == 2
    assert text in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_sources_that_cannot_be_protected_whole_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(name: str, *words: str) -> str:
        assert run(tmp_path / name, tmp_path / "out", *words) == 2
        assert not (tmp_path / "out").exists()
        return error_of(capsys)

    assert refused("nothing") == f"{tmp_path / 'nothing'}: no such file or folder"
    write_picture(tmp_path / "flat" / "a.bmp", (1, 2, 3))
    assert "protection=em_class: needs labels, and the source has none" in refused("flat", "protection=em_class")
    write_picture(tmp_path / "flat" / "a.png", (1, 2, 3))
    assert "would become a.png, as does a.bmp; rename it" in refused("flat")
    write_picture(tmp_path / "named" / "picture.bmp", (1, 2, 3))
    assert "would become picture.png, as does the picture of the protection" in refused("named")
    write_picture(tmp_path / "mixed" / "0" / "a.png", (1, 2, 3))
    write_picture(tmp_path / "mixed" / "b.png", (1, 2, 3))
    assert f"{tmp_path / 'mixed' / 'b.png'}: would be left unprotected" in refused("mixed")
    (tmp_path / "mixed" / "b.png").unlink()
    write_video(tmp_path / "mixed" / "0" / "v.avi", 9)
    assert "a.png: would be left unprotected" in refused("mixed")
    (tmp_path / "bad" / "0").mkdir(parents=True)
    (tmp_path / "bad" / "0" / "a.png").write_bytes(b"no image")
    assert "cannot be read as an image" in refused("bad")
    (tmp_path / "flat.npz").write_bytes(b"no archive")
    assert "is no npz archive" in refused("flat.npz")
    assert run(tmp_path / "flat", tmp_path / "flat" / "out") == 2
    assert "must lie outside of" in error_of(capsys)
