import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from videos import write_moving, write_video

from fedssl.data.file_dataset import FileDataset, fill_cache
from fedssl.data.frame_cache import FrameCache, fill
from fedssl.data.video import VideoDecoder
from fedssl.data.video_folder import video_folder
from fedssl.errors import DataError
from simulate import main

ENTRY = 2 * 3 * 4 + 128
"""Bytes of an entry of `Blank`: two frames of 3 by 4 and the header of a .npy file."""


@dataclass
class Blank:
    """Two frames that hold the number in the file, and a count of how often files were decoded."""

    settings: str = "blank"
    calls: list[Path] = field(default_factory=list)

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        self.calls.append(path)
        try:
            return np.full((2, 3, 4, 1), int(path.read_text()), np.uint8)
        except ValueError as error:
            raise DataError(f"{path}: no number") from error


def numbers(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.txt" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(str(number))
    return paths


def entries(cache: FrameCache) -> set[str]:
    return {path.name for path in cache.folder.glob("*.npy")}


def test_a_file_is_decoded_once_and_then_read_through_a_map(tmp_path: Path) -> None:
    (path,), decode = numbers(tmp_path, 1), Blank()
    first, again = (
        FrameCache(decode, tmp_path / "cache", 10**6)(path),
        FrameCache(decode, tmp_path / "cache", 10**6)(path),
    )
    assert decode.calls == [path]
    assert np.array_equal(first, again)
    assert not again.flags.owndata
    assert not first.flags.writeable
    assert not again.flags.writeable


@pytest.mark.parametrize("change", ["content", "time", "settings", "path"])
def test_what_the_frames_depend_on_is_part_of_the_key(change: str, tmp_path: Path) -> None:
    (path,), decode = numbers(tmp_path, 1), Blank()
    cache = FrameCache(decode, tmp_path / "cache", 10**6)
    cache(path)
    if change == "content":
        path.write_text("11")
    elif change == "time":
        os.utime(path, ns=(0, 0))
    elif change == "settings":
        decode.settings = "other"
    else:
        path = path.rename(tmp_path / "other.txt")
    assert cache(path)[0, 0, 0, 0] == (11 if change == "content" else 0)
    assert len(decode.calls) == 2


def test_settings_of_the_decoder_are_told_apart() -> None:
    decoders = [VideoDecoder(8, 8, 3), VideoDecoder(8, 9, 3), VideoDecoder(8, 8, 1), VideoDecoder(8, 8, 3, 5)]
    assert len({decoder.settings for decoder in decoders}) == 4


def test_the_entries_that_were_not_read_for_longest_go_first(tmp_path: Path) -> None:
    paths, decode = numbers(tmp_path, 4), Blank()
    cache = FrameCache(decode, tmp_path / "cache", 3 * ENTRY + 60)
    for age, path in enumerate(paths[:3]):
        cache(path)
        entry = cache.entry(path)
        assert entry is not None
        os.utime(entry, (age, age))
    cache(paths[0])
    cache(paths[3])
    kept = [path for path in paths if (entry := cache.entry(path)) is not None and entry.exists()]
    assert kept == [paths[0], paths[2], paths[3]]


def test_the_folder_never_holds_more_than_its_limit(tmp_path: Path) -> None:
    cache = FrameCache(Blank(), tmp_path / "cache", 5 * ENTRY)
    for path in numbers(tmp_path, 30):
        cache(path)
        total = sum(file.stat().st_size for file in cache.folder.glob("*.npy"))
        assert 0 < total <= 5 * ENTRY
    assert int((cache.folder / "bytes").read_text()) == total


def test_a_file_larger_than_the_limit_is_decoded_each_time(tmp_path: Path) -> None:
    (path,), decode = numbers(tmp_path, 1), Blank()
    cache = FrameCache(decode, tmp_path / "cache", ENTRY - 1)
    assert np.array_equal(cache(path), cache(path))
    assert len(decode.calls) == 2
    assert not entries(cache)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"], ids=["empty", "other", "cut"])
def test_a_broken_entry_is_made_again(content: bytes, tmp_path: Path) -> None:
    (path,), decode = numbers(tmp_path, 1), Blank()
    cache = FrameCache(decode, tmp_path / "cache", 10**6)
    cache(path)
    entry = cache.entry(path)
    assert entry is not None
    entry.write_bytes(content)
    assert np.array_equal(cache(path), cache(path))
    assert len(decode.calls) == 2


def test_what_a_killed_process_left_behind_is_cleared_and_no_entry(tmp_path: Path) -> None:
    paths = numbers(tmp_path, 3)
    cache = FrameCache(Blank(), tmp_path / "cache", 2 * ENTRY)
    for name, age in (("old", 7200.0), ("new", 0.0)):
        (cache.folder / f"{name}.tmp").write_bytes(bytes(10))
        os.utime(cache.folder / f"{name}.tmp", (time.time() - age,) * 2)
    (cache.folder / "bytes").write_text("")  # killed while it wrote
    for path in paths:
        assert cache(path)[0, 0, 0, 0] == int(path.stem)
    assert [path.name for path in cache.folder.glob("*.tmp")] == ["new.tmp"]
    assert len(entries(cache)) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/cache: cannot be used as a cache"):
        FrameCache(Blank(), tmp_path / "file" / "cache", 10)


def test_a_file_that_cannot_be_decoded_is_named_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("x")
    cache = FrameCache(Blank(), tmp_path / "cache", 10**6)
    for path in (tmp_path / "bad.txt", tmp_path / "missing.txt"):
        with pytest.raises((DataError, FileNotFoundError), match=path.name):
            cache(path)
    assert not entries(cache)


def read_all(folder: Path, limit: int) -> int:
    cache = FrameCache(Blank(), folder / "cache", limit)
    return sum(int(cache(path)[0, 0, 0, 0]) for _ in range(3) for path in sorted(folder.glob("*.txt")))


@pytest.mark.parametrize("limit", [10**6, 5 * ENTRY])
def test_processes_share_a_folder(limit: int, tmp_path: Path) -> None:
    numbers(tmp_path, 20)
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        sums = list(pool.map(read_all, [tmp_path] * 4, [limit] * 4))
    assert sums == [3 * 190] * 4
    held = list((tmp_path / "cache").glob("*.npy"))
    assert len(held) == 20 or sum(file.stat().st_size for file in held) <= limit
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_filling_decodes_each_file_once_and_tells_of_a_bad_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths, decode = numbers(tmp_path, 9), Blank()
    paths[4].write_text("x")
    cache = FrameCache(decode, tmp_path / "cache", 10**6)
    fill(cache, paths)
    assert sorted(decode.calls) == sorted(paths)
    assert len(entries(cache)) == 8
    assert "4.txt: no number" in caplog.text


def test_filling_stops_where_the_folder_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decode = Blank()
    cache = FrameCache(decode, tmp_path / "cache", 3 * ENTRY)
    fill(cache, numbers(tmp_path, 50))
    assert len(entries(cache)) == 3
    assert len(decode.calls) < 50
    assert "data.cache_bytes are not enough" in caplog.text


def test_videos_have_the_same_bits_with_a_cache_as_without(tmp_path: Path) -> None:
    for number in range(6):
        write_video(tmp_path / "videos" / "ab"[number % 2] / f"{number}.mp4", 30 * number)
    root, cache = str(tmp_path / "videos"), str(tmp_path / "cache")
    plain, kept = video_folder(root), video_folder(root, cache=cache)
    for _ in range(2):
        for index in range(len(plain.train)):
            assert np.array_equal(plain.train.read(index), kept.train.read(index))
    assert isinstance(kept.train, FileDataset)
    assert not kept.train.clips
    assert len(list(Path(cache).glob("*.npy"))) == len(plain.train)
    fill_cache(kept)
    assert len(list(Path(cache).glob("*.npy"))) == 6


def test_unreadable_videos_are_left_out_and_the_others_go_into_the_cache(tmp_path: Path) -> None:
    for number in range(4):
        write_video(tmp_path / "videos" / "a" / f"{number}.mp4", 30 * number)
    (tmp_path / "videos" / "a" / "bad.mp4").write_bytes(b"no video")
    splits = video_folder(str(tmp_path / "videos"), skip_unreadable=True, cache=str(tmp_path / "cache"))
    assert len(splits.train) + len(splits.test) == 4
    assert isinstance(splits.train, FileDataset)
    assert not splits.train.clips
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 4


def test_the_limit_must_be_positive(tmp_path: Path) -> None:
    write_video(tmp_path / "a" / "0.mp4", 3)
    with pytest.raises(ValueError, match=r"^cache_bytes must be at least 1, got 0"):
        video_folder(str(tmp_path), cache=str(tmp_path / "cache"), cache_bytes=0)


def test_a_run_ends_with_the_same_bits_whatever_is_in_the_cache(tmp_path: Path) -> None:
    for number in range(8):
        write_moving(tmp_path / "videos" / "ab"[number % 2] / f"{number}.avi", "mpeg4", size=(32 + 2 * number, 48))
    settings = [
        "data=video_folder", f"data.root={tmp_path / 'videos'}", "partition.num_clients=2", "cohort=null", "rounds=2",
        "client.epochs=1", "client.batch_size=4", "evaluation=none", "model.width=4", "objective.hidden=16",
        "engine=local",
    ]  # fmt: skip
    cache = f"data.cache={tmp_path / 'cache'}"
    hashes = set()
    for number, more in enumerate([[], [cache], [cache, "data.cache_bytes=600000"]]):
        assert main([*settings, *more, f"run_dir={tmp_path / str(number)}"]) == 0
        hashes.add(json.loads((tmp_path / str(number) / "result.json").read_text())["model_sha256"])
    assert len(hashes) == 1
