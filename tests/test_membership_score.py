"""Membership inference on encoders of images, as a score of the evaluation."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedssl.data.arrays import ArrayDataset
from fedssl.data.dataset import Splits
from fedssl.evaluation import measurement
from fedssl.evaluation.images import ImageEvaluation
from fedssl.models.encoder import Encoder
from fedssl.models.image import small_resnet
from fedssl.seeding import torch_stream

CPU = torch.device("cpu")
NOISE = torch.randn(16, 8 * 8, generator=torch.Generator().manual_seed(0))


class Knowing(nn.Module):
    """Maps every view of a bright image to one point, and views of a dark one to where their pixels lie."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        same = torch.ones(len(pixels), 16)
        return torch.where(pixels.mean(dim=1, keepdim=True) > 0.5, same, (pixels - pixels.mean()) @ NOISE.T)


def images(number: int, brightness: int, seed: int) -> ArrayDataset:
    noise = np.random.default_rng(seed).integers(0, 100, (number, 1, 10, 10, 1))
    return ArrayDataset(np.arange(number) % 2, ("a", "b"), ("",) * number, (noise + brightness).astype(np.uint8))


def untrained() -> Encoder:
    with torch_stream(0, "test"):
        return small_resnet(1, width=4)


def score(encoder: nn.Module, train: ArrayDataset, test: ArrayDataset, **settings: object) -> float:
    evaluation = ImageEvaluation(height=8, width=8, scores=["membership"], **settings)
    scores = evaluation(encoder, Splits(train, test), CPU)
    assert list(scores) == ["membership AUC"]
    return scores["membership AUC"]


def test_views_of_training_images_that_are_one_point_betray_all_of_them() -> None:
    bright, dark = images(30, 150, 0), images(20, 0, 1)
    assert score(Knowing(), bright, dark) == 1.0
    assert score(Knowing(), dark, bright) == 0.0


def test_an_encoder_cannot_tell_images_from_themselves() -> None:
    assert score(untrained(), images(40, 50, 0), images(40, 50, 0)) == 0.5


def test_an_encoder_that_was_not_trained_hardly_tells_images_of_one_kind_apart() -> None:
    # of 200 and 200 equally distributed scores the AUC has the deviation (401 / (12 * 200 * 200))^0.5 = 0.029
    assert score(untrained(), images(200, 50, 0), images(200, 50, 1)) == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize(("limit", "settings", "asked"), [(2000, {"max_train": 4}, [4, 20]), (5, {}, [5, 5])])
def test_no_more_images_are_asked_about_than_it_says(
    limit: int, settings: dict[str, int], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encoder = Knowing()
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(measurement, "_ATTACKED", limit)
    score(encoder, images(30, 150, 0), images(20, 0, 1), **settings)
    assert seen == [asked[0]] * 10 + [asked[1]] * 10  # ten views of each
