from dataclasses import dataclass
from itertools import combinations
from math import log, prod
from pathlib import Path

import numpy as np
import pytest
import torch

from fedssl.data.clips import uniform
from fedssl.data.dataset import Splits
from fedssl.evaluation.features import ClipProtocol, video_features
from fedssl.evaluation.knn import knn_accuracy
from fedssl.evaluation.retrieval import recall_at
from fedssl.evaluation.video import VideoEvaluation
from fedssl.models.small3d import small3d
from fedssl.training.augment import resize

CPU = torch.device("cpu")
CONF = Path(__file__).resolve().parents[1] / "conf"


@dataclass
class Videos:
    lengths: tuple[int, ...]
    labels: np.ndarray
    classes: tuple[str, ...] = ("a", "b")
    owners: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, index: int) -> np.ndarray:
        shape = (self.lengths[index], 10 + index, 12, 1)
        return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)


VIDEOS = Videos((1, 3, 4, 9, 20), np.array([0, 1, 0, 1, 0]))


def random_features(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 8)), rng.integers(0, 4, count)


@pytest.mark.parametrize("length", [1, 5, 16])
def test_a_video_of_one_clip_starts_at_zero(length: int) -> None:
    assert uniform(length, 10, length).tolist() == [list(range(length))] * 10


def test_clips_are_spread_from_the_first_to_the_last_frame() -> None:
    frames = uniform(40, 4, 16)
    assert frames[:, 0].tolist() == [0, 8, 16, 24]
    assert frames[-1, -1] == 39


def test_short_videos_repeat_the_last_frame() -> None:
    assert uniform(3, 2, 5).tolist() == [[0, 1, 2, 2, 2]] * 2


@pytest.mark.parametrize(("pool", "dim"), [("avg", 16), ("max", 64)])
def test_features_do_not_depend_on_the_batch(pool: str, dim: int) -> None:
    encoder = small3d(width=4)
    protocol = ClipProtocol(3, 4, 32, 32, pool)
    whole = video_features(encoder, VIDEOS, protocol, 100, CPU)
    assert whole.shape == (5, dim)
    assert whole.dtype == np.float32
    for batch_size in (1, 2, 6):
        assert np.allclose(video_features(encoder, VIDEOS, protocol, batch_size, CPU), whole, atol=1e-5)


def test_identical_clips_average_to_the_clip() -> None:
    encoder, videos = small3d(width=4), Videos((4,), np.array([0]))
    one = video_features(encoder, videos, ClipProtocol(1, 4, 16, 16, "avg"), 8, CPU)
    ten = video_features(encoder, videos, ClipProtocol(10, 4, 16, 16, "avg"), 8, CPU)
    assert np.allclose(one, ten, atol=1e-6)


def test_the_feature_of_a_video_is_the_mean_over_its_clips() -> None:
    encoder, videos, protocol = small3d(width=4).eval(), Videos((9,), np.array([0])), ClipProtocol(3, 4, 16, 16, "avg")
    clips = torch.from_numpy(videos.read(0)[protocol.frames(9)]).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        each = encoder(resize(clips, 16, 16)).numpy()
    assert np.allclose(video_features(encoder, videos, protocol, 8, CPU)[0], each.mean(axis=0), atol=1e-6)


def test_without_a_number_a_video_has_as_many_clips_as_fit_one_after_another() -> None:
    protocol = ClipProtocol(None, 2, 16, 16, "avg", clip_stride=2)
    assert protocol.frames(8).tolist() == [[0, 2], [3, 5]]
    assert protocol.frames(2).tolist() == [[0, 1]]
    encoder, videos = small3d(width=4), Videos((8, 2, 5), np.zeros(3, int))
    together = video_features(encoder, videos, protocol, 3, CPU)
    alone = [video_features(encoder, videos, protocol, 1, CPU, np.array([place])) for place in range(3)]
    assert np.allclose(together, np.concatenate(alone), atol=1e-6)


def test_a_stride_spreads_the_frames_of_a_clip() -> None:
    protocol = VideoEvaluation(16, 16, num_clips=2, clip_frames=2, clip_stride=3).protocol
    assert protocol.frames(10).tolist() == [[0, 3], [6, 9]]


def test_modes_and_statistics_are_left_as_they_were() -> None:
    encoder = small3d(width=4).train()
    encoder.body[0].eval()
    modes = [module.training for module in encoder.modules()]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    video_features(encoder, VIDEOS, ClipProtocol(2, 4, 16, 16, "avg"), 4, CPU)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="dataset must have at least 1"):
        video_features(small3d(), Videos((), np.zeros(0, int)), ClipProtocol(1, 4, 16, 16, "avg"), 4, CPU)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_recall_of_chance_is_that_of_draws_without_replacement(k: int) -> None:
    gallery, same = 6, 2
    features = np.eye(gallery + 1)[:gallery]  # the query is as far from each: they are found in a fixed order
    query = np.ones((1, gallery + 1))
    placings = [np.isin(np.arange(gallery), pair).astype(int) for pair in combinations(range(gallery), same)]
    recalls = [recall_at(query, features, np.array([1]), labels, (k,))[k] for labels in placings]
    missed = prod(1 - same / (gallery - i) for i in range(min(k, gallery - same + 1)))
    assert np.mean(recalls) == pytest.approx(1 - missed)


def test_a_gallery_of_the_queries_is_always_recalled() -> None:
    features, labels = random_features(50, 0)
    assert recall_at(features, features, labels, labels, (1, 5)) == {1: 1.0, 5: 1.0}


def test_recall_grows_with_k_up_to_one() -> None:
    (queries, wanted), (gallery, labels) = random_features(1100, 1), random_features(60, 2)
    recalls = list(recall_at(queries, gallery, wanted, labels, (1, 5, 10, 60, 500)).values())
    assert recalls == sorted(recalls)
    assert 0.1 < recalls[0] < 0.5
    assert recalls[-2:] == [1.0, 1.0]


def test_recall_ignores_scale_and_equals_a_loop() -> None:
    (queries, wanted), (gallery, labels) = random_features(40, 3), random_features(30, 4)
    hits = 0
    for query, label in zip(queries, wanted, strict=True):
        cosines = gallery @ query / np.linalg.norm(gallery, axis=1)
        hits += label in labels[np.argsort(cosines)[-3:]]
    assert recall_at(queries * 7, gallery * 0.1, wanted, labels, (3,))[3] == pytest.approx(hits / 40)


def test_a_class_without_videos_is_never_recalled() -> None:
    features, _ = random_features(6, 5)
    assert recall_at(features, features, np.ones(6, int), np.zeros(6, int), (6,)) == {6: 0.0}


@pytest.mark.parametrize(("temperature", "winner"), [(0.01, 0), (0.1442, 0), (0.1444, 1), (100.0, 1)])
def test_temperature_decides_between_nearness_and_number(temperature: float, winner: int) -> None:
    assert 0.1 / log(2) == pytest.approx(0.1443, abs=5e-5)
    bank = np.array([[s, np.sqrt(1 - s * s)] for s in (0.9, 0.8, 0.8)])
    query = np.array([[1.0, 0.0]])
    assert knn_accuracy(bank, np.array([0, 1, 1]), query, np.array([winner]), 2, 20, temperature) == 1.0


def test_queries_of_the_bank_find_themselves() -> None:
    features, labels = random_features(1100, 6)
    assert knn_accuracy(features, labels, features, labels, 4, k=1) == 1.0


def test_equal_votes_go_to_the_lower_class() -> None:
    bank, query = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0]])
    for labels in ([2, 1], [1, 2]):
        assert knn_accuracy(bank, np.array(labels), query, np.array([1]), 3) == 1.0


def test_a_tiny_temperature_does_not_overflow() -> None:
    features, labels = random_features(20, 7)
    with np.errstate(all="raise", under="ignore"):
        assert knn_accuracy(features, labels, features, labels, 4, temperature=1e-5) == 1.0


def test_the_order_of_the_bank_does_not_matter() -> None:
    (bank, labels), (queries, wanted) = random_features(80, 8), random_features(40, 9)
    order = np.random.default_rng(0).permutation(80)
    assert knn_accuracy(bank, labels, queries, wanted, 4) == knn_accuracy(
        bank[order], labels[order], queries, wanted, 4
    )


@pytest.mark.parametrize(("k", "temperature", "name"), [(0, 0.1, "k"), (1, 0.0, "temperature")])
def test_bad_votes_are_named(k: int, temperature: float, name: str) -> None:
    features, labels = random_features(5, 0)
    with pytest.raises(ValueError, match=f"{name} must be"):
        knn_accuracy(features, labels, features, labels, 4, k, temperature)


def test_the_evaluation_names_its_numbers() -> None:
    evaluation = VideoEvaluation(height=16, width=16, ks=[1, 5], num_clips=2, clip_frames=4, knn_k=1)
    result = evaluation(small3d(width=4), Splits(VIDEOS, VIDEOS), CPU)
    assert result == {"R@1": 1.0, "R@5": 1.0, "kNN": 1.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ks", []),
        ("ks", [0]),
        ("num_clips", 0),
        ("clip_stride", 0),
        ("pool", "min"),
        ("knn_k", 0),
        ("knn_temperature", 0),
        ("batch_size", 0),
    ],
)
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        VideoEvaluation(**{"height": 8, "width": 8, name: value})
