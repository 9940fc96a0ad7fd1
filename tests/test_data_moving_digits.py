import time

import numpy as np
import pytest

from fedssl.data.digits import load_images
from fedssl.data.motion import MOTIONS, draw_mask, trajectory
from fedssl.data.moving_digits import MovingDigits, moving_digits

SPLITS = moving_digits(num_train=1600, num_test=80)


def test_a_clip_has_the_shape_that_was_asked_for() -> None:
    splits = moving_digits(num_train=3, num_test=2, num_frames=5, size=20, channels=3)
    clip = splits.train.read(2)
    assert clip.shape == (5, 20, 20, 3)
    assert clip.dtype == np.uint8
    assert (len(splits.train), len(splits.test)) == (3, 2)
    assert splits.train.owners == ("", "", "")


def test_a_clip_is_the_same_at_every_read_and_in_every_dataset() -> None:
    again = moving_digits(num_train=10, num_test=1)
    for index in (9, 0, 5):
        assert np.array_equal(SPLITS.train.read(index), SPLITS.train.read(index))
        assert np.array_equal(SPLITS.train.read(index), again.train.read(index))


def test_clips_differ_by_index_split_and_seed() -> None:
    other = moving_digits(num_train=1, num_test=1, seed=1)
    clips = [SPLITS.train.read(0), SPLITS.train.read(8), SPLITS.test.read(0), other.train.read(0)]
    assert len({clip.tobytes() for clip in clips}) == 4


def test_motions_are_balanced_and_independent_of_the_digit() -> None:
    train = SPLITS.train
    assert isinstance(train, MovingDigits)
    images, shown = load_images()
    names = {image.tobytes(): int(digit) for image, digit in zip(images, shown, strict=True)}
    table = np.zeros((8, 10))
    for index in range(len(train)):
        table[train.labels[index], names[train.images[train.source(index)].tobytes()]] += 1
    assert (table.sum(axis=1) == 200).all()
    expected = table.sum(axis=0) / 8
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert chi_square < 103.4  # the 0.999 quantile for 7 * 9 = 63 degrees of freedom


def test_training_and_test_share_no_digit() -> None:
    assert isinstance(SPLITS.train, MovingDigits)
    assert isinstance(SPLITS.test, MovingDigits)
    train, test = ({image.tobytes() for image in part.images} for part in (SPLITS.train, SPLITS.test))
    assert len(SPLITS.train.images) + len(SPLITS.test.images) == 1797
    assert not train & test


def test_directions_are_what_they_are_called() -> None:
    x, y, size = (dict(zip(MOTIONS, column, strict=True)) for column in
                  np.diff([trajectory(name, 9, 0.5, 0.0) for name in MOTIONS], axis=1).transpose(2, 0, 1))  # fmt: skip
    assert (x["right"] > 0).all()
    assert (x["left"] < 0).all()
    assert (y["down"] > 0).all()
    assert (y["up"] < 0).all()
    assert (size["grow"] > 0).all()
    assert (size["shrink"] < 0).all()


@pytest.mark.parametrize(("name", "sign"), [("clockwise", 1), ("counterclockwise", -1)])
def test_circles_turn_the_way_they_are_called(name: str, sign: int) -> None:
    x, y, _ = trajectory(name, 24, 0.5, 1.0).T
    turned = x[:-1] * y[1:] - y[:-1] * x[1:]  # positive is clockwise, since y points down
    assert (sign * turned > 0).all()


@pytest.mark.parametrize("pair", range(3))
def test_opposite_directions_are_told_apart_by_time_alone(pair: int) -> None:
    there, back = MOTIONS[2 * pair], MOTIONS[2 * pair + 1]
    assert np.allclose(trajectory(there, 7, 0.4, 2.0), trajectory(back, 7, 0.4, 2.0)[::-1])


def test_a_digit_is_drawn_where_the_curve_says() -> None:
    curve = np.array([[10.0, 20.0, 8.0], [15.0, 12.0, 8.0]])
    mask = draw_mask(np.ones((8, 8), np.float32), 32, curve)
    pixels = np.arange(32)
    for frame, (x, y, _) in zip(mask, curve, strict=True):
        assert (frame.sum(axis=0) * pixels).sum() / frame.sum() == pytest.approx(x, abs=1e-4)
        assert (frame.sum(axis=1) * pixels).sum() / frame.sum() == pytest.approx(y, abs=1e-4)
        assert frame.sum() == pytest.approx(64, abs=1e-3)


def test_a_clip_is_drawn_quickly() -> None:
    start = time.perf_counter()
    for index in range(50):
        SPLITS.train.read(index)
    assert (time.perf_counter() - start) / 50 < 0.02


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("num_train", 0, "at least 1"), ("num_test", 0, "at least 1"), ("num_classes", 9, "2 to 8"),
     ("num_classes", 1, "2 to 8"), ("num_frames", 1, "at least 2"), ("size", 7, "at least 8"),
     ("channels", 2, "1 or 3")],
)  # fmt: skip
def test_a_bad_setting_is_named(name: str, value: int, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be {allowed}, got {value}$"):
        moving_digits(**{name: value})


def test_no_clip_lies_beyond_the_end() -> None:
    with pytest.raises(IndexError):
        SPLITS.train.read(1600)
