import numpy as np
import pytest

from fedssl.data.clips import dense, from_starts, random, span, uniform


def test_a_clip_reaches_over_its_strides() -> None:
    assert [span(1, 9), span(4, 1), span(4, 3)] == [1, 4, 10]


def test_a_clip_takes_every_strideth_frame_and_repeats_the_last_past_the_end() -> None:
    assert from_starts(np.array([0, 5]), 8, 3, 2).tolist() == [[0, 2, 4], [5, 7, 7]]


def test_uniform_clips_go_from_the_first_frame_to_the_last() -> None:
    assert uniform(10, 3, 4).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert uniform(10, 2, 3, stride=2).tolist() == [[0, 2, 4], [5, 7, 9]]
    assert uniform(2, 2, 3).tolist() == [[0, 1, 1]] * 2


def test_one_uniform_clip_lies_in_the_middle_of_nothing_but_starts_the_video() -> None:
    assert uniform(9, 1, 3).tolist() == [[0, 1, 2]]


def test_random_clips_begin_at_every_place_that_they_fit_equally_often() -> None:
    clips = random(6, 2, 3, (np.arange(12) + 0.5) / 12)
    assert clips.tolist() == [[start, start + 3] for start in (0, 1, 2) for _ in range(4)]
    assert random(2, 3, 1, np.array([0.99])).tolist() == [[0, 1, 1]]


def test_dense_clips_begin_at_every_step_that_fits() -> None:
    assert dense(7, 3, step=2).tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert dense(6, 2, stride=4).tolist() == [[0, 4], [1, 5]]
    assert dense(2, 4).tolist() == [[0, 1, 1, 1]]


def test_windows_without_overlap_are_a_step_of_their_length() -> None:
    assert dense(40, 16, step=16)[:, 0].tolist() == [0, 16]


@pytest.mark.parametrize("name", ["num_frames", "length", "stride"])
def test_numbers_below_one_are_named(name: str) -> None:
    numbers = {"num_frames": 4, "length": 2, "stride": 1, name: 0}
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
        dense(**numbers)
