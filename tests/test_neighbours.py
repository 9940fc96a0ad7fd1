"""The picture of nearest neighbours, on videos whose brightness is their feature's direction."""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fedssl.data.dataset import Splits
from fedssl.data.file_dataset import FileDataset
from fedssl.evaluation.neighbours import Answer, Shown, choose, neighbours
from fedssl.evaluation.video import VideoEvaluation
from fedssl.models.encoder import Encoder
from fedssl.models.small3d import small3d
from fedssl.report.html import Held, write_report
from fedssl.report.neighbours_plot import RIGHT, WRONG, _fitted, neighbours_plot
from fedssl.report.records import RunResult
from fedssl.report.rundir import RunDirectory

CPU = torch.device("cpu")
EVALUATION = VideoEvaluation(height=4, width=4, num_clips=2, clip_frames=2)
RESULT = RunResult("completed", 1, "ab12", {}, {}, None, 1, 0, 1.0, 1, 1, {})


@dataclass
class Grey:
    """Videos of 9 frames, each of one brightness; frame t is t brighter."""

    levels: tuple[int, ...]
    labels: np.ndarray
    classes: tuple[str, ...] = ("b", "a")
    channels: int = 1

    def __post_init__(self) -> None:
        self.owners = ("",) * len(self.levels)
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.levels)

    def read(self, index: int) -> np.ndarray:
        self.reads.append(index)
        video = np.full((9, 6, 8, self.channels), self.levels[index], np.uint8)
        return video + np.arange(9, dtype=np.uint8)[:, None, None, None]


class Turned(nn.Module):
    """Maps a clip of brightness x in [0, 1] to the direction at the angle x, or at the angle of a few steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, clips: Tensor) -> Tensor:
        angle = clips.mean(dim=(1, 2, 3, 4))
        angle = (angle * self.steps).floor() / self.steps
        return torch.stack([angle.cos(), angle.sin()], dim=1)[:, :, None, None, None]


def encoder(steps: int) -> Encoder:
    return Encoder(Turned(steps), 2)


TRAIN = Grey((0, 40, 80, 120, 160, 200, 240), np.array([0, 0, 0, 0, 1, 1, 1]))


def test_neighbours_are_the_nearest_in_brightness_and_equal_ones_come_in_order() -> None:
    splits = Splits(TRAIN, Grey((90, 230), np.array([0, 1])))
    # an encoder of one step sees all videos alike
    first, second = neighbours(encoder(256), encoder(1), splits, EVALUATION, CPU)
    assert (first.query.label, second.query.label) == ("a", "b")
    assert [video.index for video in first.trained] == [6, 5, 4, 3, 2]
    assert [video.label for video in first.trained] == ["a", "a", "a", "b", "b"]
    assert [video.index for video in second.trained] == [2, 3, 1, 4, 0]
    for answer in (first, second):
        assert [video.index for video in answer.untrained] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_both_encoders_share_one_reading_and_keep_their_features_apart(pool: str) -> None:
    train, test = Grey(TRAIN.levels, TRAIN.labels), Grey((90, 230), np.array([0, 1]))
    evaluation = VideoEvaluation(height=16, width=16, num_clips=2, clip_frames=4, pool=pool)
    trained, untrained = small3d(width=2).train(), small3d(width=3).train()
    both = neighbours(trained, untrained, Splits(train, test), evaluation, CPU)
    assert trained.training
    assert untrained.training
    assert sorted(train.reads[:7]) == list(range(7))
    assert len(train.reads) == 7 + 2 * 2 * 5  # once each for the features, then those that are shown
    for alone, name in ((trained, "trained"), (untrained, "untrained")):
        twice = neighbours(alone, alone, Splits(train, test), evaluation, CPU)
        for one, other in zip(both, twice, strict=True):
            found = [video.index for video in getattr(one, name)]
            assert found == [video.index for video in other.trained] == [video.index for video in other.untrained]


def test_a_video_is_shown_by_the_middle_of_each_third() -> None:
    (answer,) = neighbours(encoder(256), encoder(1), Splits(TRAIN, Grey((90,), np.array([0]))), EVALUATION, CPU)
    assert answer.query.stills.shape == (3, 6, 8, 1)
    assert answer.query.stills[:, 0, 0, 0].tolist() == [91, 94, 97]


def test_fewer_training_videos_than_five_and_fewer_test_videos_than_six_are_all_shown() -> None:
    splits = Splits(Grey((0, 200), np.array([0, 1])), Grey((90, 230, 3), np.array([0, 1, 1])))
    answers = neighbours(encoder(256), encoder(1), splits, EVALUATION, CPU)
    assert [answer.query.index for answer in answers] == [1, 0, 2]
    assert [len(answer.trained) for answer in answers] == [len(answer.untrained) for answer in answers] == [2, 2, 2]
    with pytest.raises(ValueError, match="dataset must have at least 1"):
        neighbours(encoder(256), encoder(1), Splits(Grey((), np.zeros(0, int)), splits.test), EVALUATION, CPU)


def test_queries_are_taken_a_class_at_a_time_in_the_order_of_names() -> None:
    names = ["z/3.avi", "z/1.avi", "a/9.avi", "a/8.avi", "a/7.avi"]
    labels, owners = np.array([0, 0, 1, 1, 1]), ("",) * 5
    files = FileDataset(
        tuple(map(Path, names)), labels, ("z", "a"), owners, lambda path: np.zeros((1, 1, 1, 1), np.uint8)
    )
    assert [names[place] for place in choose(files, 4)] == ["a/7.avi", "z/1.avi", "a/8.avi", "z/3.avi"]
    assert len(choose(files, 6)) == 5
    assert choose(Grey((1, 2, 3), np.array([0, 0, 1])), 2).tolist() == [2, 0]


def shown(label: str, channels: int = 3, size: tuple[int, int] = (12, 12)) -> Shown:
    return Shown(0, label, np.full((3, *size, channels), 90, np.uint8))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def amount(image: np.ndarray, colour: str) -> int:
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(image.astype(int) - wanted).max(axis=-1) < 8).sum())


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_are_blue_where_the_class_is_right_and_orange_where_it_is_wrong(channels: int) -> None:
    right, wrong = (tuple(shown(label, channels) for label in labels) for labels in ("aaaaa", "bbbbb"))
    query = shown("a", channels)
    none, all_right, half = (
        pixels(neighbours_plot([Answer(query, *found)])) for found in ((wrong, wrong), (right, right), (right, wrong))
    )
    assert none.shape == all_right.shape == half.shape
    # only the legend has a word in the other colour
    assert 20 * amount(none, RIGHT) < amount(all_right, RIGHT)
    assert 20 * amount(all_right, WRONG) < amount(none, WRONG)
    assert amount(half, RIGHT) == pytest.approx(amount(all_right, RIGHT) / 2, rel=0.1)


def test_the_picture_is_the_same_each_time_and_as_wide_for_few_neighbours_and_other_sizes() -> None:
    full = Answer(shown("a"), (shown("a"),) * 5, (shown("b"),) * 5)
    few = Answer(shown("a" * 99, size=(40, 10)), (shown("$x^2$"),), (shown("b", size=(3, 90)),))
    assert neighbours_plot([full, few]) == neighbours_plot([full, few])
    assert pixels(neighbours_plot([few])).shape[1] == pixels(neighbours_plot([full])).shape[1]
    with pytest.raises(ValueError, match="at least 1 test video"):
        neighbours_plot([])


def test_a_long_name_is_shortened_and_a_short_one_is_not() -> None:
    assert _fitted("✓ walk") == "✓ walk"
    name = "passing American football (not in game)"
    assert re.fullmatch(r"passing Amer.*[^ ]…", _fitted(name))
    assert len(_fitted("W" * 99)) < len(_fitted("i" * 99)) < 99


def test_the_report_shows_the_picture_and_what_clients_share_only_where_there_is_some(tmp_path: Path) -> None:
    answers = [Answer(shown("a"), (shown("a"),) * 5, (shown("b"),) * 5)]
    counts = np.array([[3, 0], [1, 2]])
    write_report(
        RunDirectory(tmp_path), "", [], RESULT, Held(counts, shared="2 clients of 1 to 2"), ["a", "b"], answers
    )
    page = (tmp_path / "report.html").read_text()
    assert (tmp_path / "neighbours.png").read_bytes() == neighbours_plot(answers)
    assert page.count('src="data:image/png;base64,iVBOR') == 1
    assert "<p>2 clients of 1 to 2</p>" in page
    other = tmp_path / "other"
    other.mkdir()
    write_report(RunDirectory(other), "", [], RESULT, Held(counts), ["a", "b"])
    page = (other / "report.html").read_text()
    assert "Nearest neighbours" not in page
    assert "<img" not in page
    assert not (other / "neighbours.png").exists()
