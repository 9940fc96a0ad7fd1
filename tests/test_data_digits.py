import numpy as np
import pytest

from fedssl.data.arrays import ArrayDataset
from fedssl.data.digits import digits, load_images


def test_digits_are_clips_of_one_frame() -> None:
    splits = digits(channels=3)
    clip = splits.train.read(0)
    assert clip.shape == (1, 8, 8, 3)
    assert clip.dtype == np.uint8
    assert (clip[..., 0] == clip[..., 2]).all()
    assert len(splits.train) + len(splits.test) == 1797
    assert set(splits.train.owners) == {""}


def test_the_brightest_value_becomes_255() -> None:
    images, shown = load_images()
    assert images.max() == 255
    assert shown[:3].tolist() == [0, 1, 2]


def test_every_digit_is_held_out_in_the_same_proportion() -> None:
    splits = digits(test_fraction=0.25)
    train, test = np.bincount(splits.train.labels), np.bincount(splits.test.labels)
    assert (np.abs(test / (train + test) - 0.25) < 0.005).all()


def test_the_split_follows_the_seed() -> None:
    assert (digits(seed=1).test.labels == digits(seed=1).test.labels).all()
    assert not np.array_equal(digits(seed=1).test.read(0), digits(seed=2).test.read(0))


@pytest.mark.parametrize(("fraction", "channels", "name"), [(0.0, 1, "test_fraction"), (1.0, 1, "test_fraction"),
                                                            (0.2, 2, "channels")])  # fmt: skip
def test_a_bad_setting_is_named(fraction: float, channels: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        digits(test_fraction=fraction, channels=channels)


@pytest.mark.parametrize(
    ("labels", "owners", "examples", "text"),
    [
        ([0, 1], ("", ""), np.zeros((2, 4, 4, 1), np.uint8), "examples must be uint8"),
        ([0, 1], ("", ""), np.zeros((2, 1, 4, 4, 1)), "examples must be uint8"),
        ([0], ("", ""), np.zeros((2, 1, 4, 4, 1), np.uint8), "labels must be int64"),
        ([0, 2], ("", ""), np.zeros((2, 1, 4, 4, 1), np.uint8), "labels must be in 0 to 1, got 0 to 2"),
        ([0, 1], ("",), np.zeros((2, 1, 4, 4, 1), np.uint8), "owners must be 2 names, got 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(labels: list[int], owners: tuple[str, ...], examples: np.ndarray,
                                            text: str) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=text):
        ArrayDataset(np.array(labels, np.int64), ("a", "b"), owners, examples)
