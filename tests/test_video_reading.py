"""What a user may have is read, or refused by name."""

import json
import logging
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from videos import write_moving

from fedssl.data import video
from fedssl.data.video import VideoDecoder
from fedssl.errors import DataError

READ = VideoDecoder(16, 24, 3)
FORMATS = {
    "avi": "mpeg4", "mp4": "libx264", "mov": "mjpeg", "mpeg": "mpeg2video", "gif": "gif", "mkv": "libx264",
    "webm": "libvpx-vp9", "ts": "mpeg2video",
}  # fmt: skip


def write(folder: Path, ending: str, frames: int = 12) -> Path:
    path = folder / f"clip.{ending}"
    write_moving(path, FORMATS[ending], frames)
    return path


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_all_frames_in_order(ending: str, tmp_path: Path) -> None:
    frames = READ(write(tmp_path, ending))
    assert frames.shape == (12, 16, 24, 3)
    assert np.abs(frames[:, 8, 20].astype(int) - 20 * np.arange(12)[:, None]).max() <= 6
    assert np.abs(frames[:, 8, 3].astype(int) - (255 - 20 * np.arange(12)[:, None])).max() <= 6


def test_odd_sizes_are_read(tmp_path: Path) -> None:
    write_moving(tmp_path / "odd.mkv", "ffv1", 3, (33, 47))
    assert READ(tmp_path / "odd.mkv")[:, 8, 20, 0].tolist() == [0, 20, 40]
    assert VideoDecoder(7, 5, 1)(tmp_path / "odd.mkv").shape == (3, 7, 5, 1)


def test_frames_at_uneven_times_are_each_read_once(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "uneven.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 8, 8, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((8, 8, 3), 50 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 100 * number**3, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert READ(tmp_path / "uneven.mkv")[:, 0, 0, 0].tolist() == [0, 50, 100, 150, 200]


def test_a_header_without_a_duration_is_no_obstacle(tmp_path: Path) -> None:
    write_moving(tmp_path / "live.mkv", "libx264", live="1")
    with av.open(str(tmp_path / "live.mkv")) as container:
        assert not container.streams.video[0].frames
    assert len(READ(tmp_path / "live.mkv")) == 12


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), [[0, 1], [2, 3]]),
        ((0, 1, -1, 0), [[2, 0], [3, 1]]),  # a quarter turn clockwise: what was on the left is on top
        ((-1, 0, 0, -1), [[3, 2], [1, 0]]),
        ((0, -1, 1, 0), [[1, 3], [0, 2]]),
        ((-1, 0, 0, 1), [[1, 0], [3, 2]]),  # a mirror
        ((0, 1, 1, 0), [[0, 2], [1, 3]]),
    ],
)
def test_a_video_is_turned_as_its_camera_was_held(
    matrix: tuple[int, int, int, int], shown: list[list[int]], tmp_path: Path
) -> None:
    path, quarters = tmp_path / "turned.mp4", np.kron([[20, 90], [160, 230]], np.ones((16, 32)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        image = np.repeat(quarters[..., None], 3, axis=2).astype(np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    data, (a, b, c, d) = bytearray(path.read_bytes()), (65536 * number for number in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 2**30)
    path.write_bytes(data)
    frame = VideoDecoder(24, 8, 1)(path)[0, :, :, 0].astype(int)
    corners = frame[[3, 3, 20, 20], [1, 6, 1, 6]].reshape(2, 2)
    assert (np.abs(corners - np.array([20, 90, 160, 230])[np.array(shown)]) < 8).all()


@pytest.mark.parametrize("ending", ["ts", "webm", "gif"])
def test_of_a_file_that_breaks_off_the_frames_before_the_break_are_kept(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path, ending)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    frames = READ(path)
    assert 0 < len(frames) < 12
    assert np.abs(frames[:-1, 8, 20, 0].astype(int) - 20 * np.arange(len(frames) - 1)).max() <= 6


def test_the_frames_before_a_broken_picture_are_kept_and_the_break_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "mov")
    pictures = path.read_bytes().split(b"\xff\xd8\xff")
    pictures[7] = bytes(len(pictures[7]))
    path.write_bytes(b"\xff\xd8\xff".join(pictures))
    with caplog.at_level(logging.WARNING, "fedssl"):
        assert len(READ(path)) == 6
    assert "clip.mov: breaks off after 6 frames" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.02])
def test_a_file_with_no_frame_is_refused_by_name(share: float, tmp_path: Path) -> None:
    path = write(tmp_path, "mp4")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"clip\.mp4: cannot be read as a video"):
        READ(path)


def test_a_file_without_pictures_is_refused_by_name(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"sound\.wav: cannot be read as a video \(it has no video stream"):
        READ(tmp_path / "sound.wav")


def test_a_video_too_long_for_memory_is_refused_unless_some_frames_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "avi")
    monkeypatch.setattr(video, "MAX_BYTES", 5 * 16 * 24 * 3)
    with pytest.raises(DataError, match=r"clip\.avi: has 5 frames or more, which is too long; use data\.max_frames"):
        READ(path)
    assert len(VideoDecoder(16, 24, 3, max_frames=4)(path)) == 4


def test_a_frame_of_absurd_size_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "huge.gif"
    Image.new("L", (4, 4)).save(path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<2H", data, 6, 60000, 60000)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"huge\.gif: cannot be read as a video"):
        READ(path)


def test_a_file_cannot_name_other_files(tmp_path: Path) -> None:
    write(tmp_path, "ts")
    (tmp_path / "list.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost:9/clip.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(DataError, match=r"list\.mp4: cannot be read as a video"):
        READ(tmp_path / "list.mp4")


def test_a_name_with_a_colon_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "avi").rename(tmp_path / "a:b.avi")
    monkeypatch.chdir(tmp_path)
    assert len(READ(Path("a:b.avi"))) == 12


READ_ALL = """
import json, sys, time
from pathlib import Path
from fedssl.data.video import VideoDecoder
from fedssl.errors import DataError
read = VideoDecoder(16, 24, 3)
for path in sorted(Path(sys.argv[1]).iterdir()):
    begun = time.perf_counter()
    try:
        answer = len(read(path))
    except DataError as error:
        answer = str(error)
    print(json.dumps([path.name, answer, time.perf_counter() - begun]), flush=True)
"""


def test_200_damaged_files_are_each_read_or_refused_by_name(tmp_path: Path) -> None:
    rng, damaged = np.random.default_rng(0), tmp_path / "damaged"
    damaged.mkdir()
    for ending in FORMATS:
        original = np.frombuffer(write(tmp_path, ending).read_bytes(), np.uint8)
        for number in range(25):
            data = original.copy()
            if number % 2:
                data = data[: int(rng.uniform(0.01, 1) * len(data))]
            if number % 4 != 1:
                # a third of the bytes that are hit lie in the header, where lengths and sizes are
                places = rng.integers(len(data) if number % 3 else min(len(data), 400), size=1 + number)
                data[places] = rng.integers(256, size=len(places))
            (damaged / f"{ending}{number}.{ending}").write_bytes(data.tobytes())
    words = [sys.executable, "-c", READ_ALL, str(damaged)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 200
    assert all(answer > 0 if isinstance(answer, int) else name in answer for name, answer, _ in answers)
    assert max(seconds for _, _, seconds in answers) < 10
    assert sum(isinstance(answer, int) for _, answer, _ in answers) > 80
