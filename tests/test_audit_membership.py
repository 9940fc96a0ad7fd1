from math import inf, log

import numpy as np
import pytest
import torch
from batches import batch_of
from torch import nn

from fedssl.models.bundle import build_bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.rotnet import RotNet
from fedssl.objectives.simclr import SimClr
from fedssl.privacy.audit.attack import attack
from fedssl.privacy.audit.lira import halves, offline, online
from fedssl.privacy.audit.membership import (
    SetAttack,
    VectorAttack,
    best_threshold,
    embedding_norm,
    mean_cosine,
    negative_loss,
    sorted_cosines,
)


def views(number: int, spread: float, seed: int) -> np.ndarray:
    """Ten views of each example: its own direction and noise."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(number, 1, 8)) + spread * rng.normal(size=(number, 10, 8))


def test_cosines_of_three_views_are_known_by_hand() -> None:
    features = np.array([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    assert sorted_cosines(features) == pytest.approx(np.array([[-1.0, 0.0, 0.0]]))
    assert mean_cosine(features) == pytest.approx([-1 / 3])
    assert sorted_cosines(views(2, 1.0, 0)).shape == (2, 45)
    with pytest.raises(ValueError, match="at least 2 views"):
        mean_cosine(np.zeros((3, 1, 2)))


def test_views_that_lie_closer_betray_a_member() -> None:
    found = attack(mean_cosine(views(200, 0.3, 0)), mean_cosine(views(200, 0.6, 1)))
    assert found.auc > 0.9


def test_the_threshold_of_a_shadow_encoder_tells_another_s_members() -> None:
    threshold = best_threshold(mean_cosine(views(200, 0.3, 0)), mean_cosine(views(200, 0.6, 1)))
    hits, false_alarms = (mean_cosine(views(200, spread, 2)) >= threshold for spread in (0.3, 0.6))
    assert (hits.mean() + 1 - false_alarms.mean()) / 2 > 0.85
    assert best_threshold(np.array([3.0, 1.0, 2.5]), np.array([2.0, 0.0])) == 2.5  # two of three members and no other
    with pytest.raises(ValueError, match="must not be empty, got 0 and 1"):
        best_threshold(np.array([]), np.array([1.0]))


def test_a_network_on_sorted_cosines_learns_the_attack_from_a_shadow_encoder() -> None:
    vector_attack = VectorAttack(views(200, 0.3, 0), views(200, 0.6, 1))
    members, others = vector_attack(views(200, 0.3, 2)), vector_attack(views(200, 0.6, 3))
    assert attack(members, others).auc > 0.9
    again = VectorAttack(views(200, 0.3, 0), views(200, 0.6, 1))
    assert again(views(200, 0.3, 2)) == pytest.approx(members)


def test_a_network_on_the_set_of_cosines_learns_the_attack_and_takes_fewer_views() -> None:
    set_attack = SetAttack(views(200, 0.3, 0), views(200, 0.6, 1))
    members, others = views(200, 0.3, 2), views(200, 0.6, 3)
    for number in (10, 4):
        assert attack(set_attack(members[:, :number]), set_attack(others[:, :number])).auc > 0.9
    again = SetAttack(views(200, 0.3, 0), views(200, 0.6, 1))
    assert again(members) == pytest.approx(set_attack(members))


def test_a_set_network_sees_neither_the_order_nor_the_number_of_equal_cosines() -> None:
    set_attack = SetAttack(views(50, 0.3, 0), views(50, 0.6, 1))
    some = views(5, 0.5, 2)
    assert set_attack(some[:, ::-1]) == pytest.approx(set_attack(some), abs=1e-6)
    same = views(5, 0.0, 3)  # all cosines are 1
    assert np.concatenate((set_attack(same), set_attack(same[:, :3]))) == pytest.approx([set_attack(same)[0]] * 10)


def test_a_set_network_tells_what_the_mean_cosine_cannot() -> None:
    member = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])  # cosines 1, -1, -1
    other = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])  # corners of a tetrahedron: all -1/3
    both = np.stack((member, other))
    assert mean_cosine(both) == pytest.approx([-1 / 3, -1 / 3])
    assert (SetAttack(both[:1].repeat(20, axis=0), both[1:].repeat(20, axis=0))(both).round() == [1, 0]).all()


def test_an_attack_without_members_is_not_taught() -> None:
    for kind in (SetAttack, VectorAttack):
        with pytest.raises(ValueError, match="must not be empty, got 0 and 5"):
            kind(views(0, 0.3, 0), views(5, 0.6, 1))


def test_norms_are_those_of_the_views() -> None:
    features = np.array([[[3.0, 4.0], [0.0, -1.0]]])
    assert embedding_norm(features) == pytest.approx([3.0])
    assert embedding_norm(features, 1) == pytest.approx([4.0])
    assert embedding_norm(features, inf) == pytest.approx([2.5])


def test_the_pretext_s_loss_is_that_of_each_example_alone() -> None:
    objective = RotNet()
    model = build_bundle(lambda: small_resnet(1, width=2, norm="group"), objective, seed=0)
    images = torch.rand(3, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scores = negative_loss(model, objective, [batch_of(images), batch_of(images.flip(4))])
    by_hand = [
        -np.mean([objective.step(model, batch_of(part[None])).loss.item() for part in (image, image.flip(3))])
        for image in images
    ]
    assert scores == pytest.approx(by_hand, abs=1e-6)
    assert model.training
    for parameter in model["head"].parameters():
        nn.init.zeros_(parameter)
    assert negative_loss(model, objective, [batch_of(images)]) == pytest.approx([-log(4)] * 3)


def test_a_loss_of_a_whole_batch_is_no_score() -> None:
    objective = SimClr()
    model = build_bundle(lambda: small_resnet(1, width=2), objective, seed=0)
    with pytest.raises(ValueError, match="objective must have a loss for each example, got one of a batch"):
        negative_loss(model, objective, [])
    with pytest.raises(ValueError, match="batches must have at least 1 batch, got 0"):
        negative_loss(model, RotNet(), [])


def test_each_example_is_in_half_of_the_shadow_encoders() -> None:
    included = halves(8, 100, np.random.default_rng(0))
    assert (included.sum(axis=0) == 4).all()
    assert 30 < included.sum(axis=1).min() <= included.sum(axis=1).max() < 70
    with pytest.raises(ValueError, match="num_shadows must be even, got 3"):
        halves(3, 10, np.random.default_rng(0))


def shadows(number: int, num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores that are one higher for members, on top of how easy each example is."""
    rng = np.random.default_rng(seed)
    included = halves(number, num_examples, rng)
    members = rng.random(num_examples) < 0.5
    every = np.vstack((members, included)) + rng.normal(size=(number + 1, num_examples))
    every = every + 5 * rng.normal(size=num_examples)
    return every[0], every[1:], included, members


@pytest.mark.parametrize("number", [16, 64])
def test_shadow_encoders_take_out_how_easy_an_example_is(number: int) -> None:
    target, scores, included, members = shadows(number, 4000, 0)
    assert attack(target[members], target[~members], num_resamples=1).auc < 0.6
    for ratio in (online(target, scores, included), offline(target, scores, included)):
        auc = attack(ratio[members], ratio[~members], num_resamples=1).auc
        assert auc == pytest.approx(0.7602, abs=0.03)  # the best there is for two normals one deviation apart


def test_the_ratio_of_two_fitted_normals_is_known_by_hand() -> None:
    scores = np.array([[3.0], [5.0], [0.0], [2.0]])
    included = np.array([[True], [True], [False], [False]])
    deviation = 2**0.5  # both pairs are 2 apart
    assert online(np.array([4.0]), scores, included) == pytest.approx([(4 - 1) ** 2 / (2 * 2)])
    assert offline(np.array([4.0]), scores, included) == pytest.approx([3 / deviation])


def test_an_example_that_too_few_shadow_encoders_saw_is_refused() -> None:
    included = np.array([[True], [False], [False]])
    with pytest.raises(ValueError, match="shadows of an example must be at least 2, got 1"):
        online(np.array([1.0]), np.zeros((3, 1)), included)
    with pytest.raises(ValueError, match="target, shadows and included must be"):
        offline(np.array([1.0, 2.0]), np.zeros((3, 1)), included)
