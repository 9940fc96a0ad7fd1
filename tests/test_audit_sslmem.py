import numpy as np
import pytest

from fedssl.privacy.audit.sslmem import anchor, memorisation, pairs, report


def features(number: int, views: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, views, dim))


def test_views_at_right_angles_are_the_root_of_two_apart() -> None:
    views = np.array([[[2.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [5.0, 5.0]]])
    assert pairs(views) == pytest.approx([2**0.5, 0.0])
    assert pairs(views, normalise=False) == pytest.approx([13**0.5, 32**0.5])
    assert anchor(views[:, 0], views) == pytest.approx([2**0.5 / 2, 0.0])


def test_all_pairs_are_taken() -> None:
    views = np.array([[[0.0], [1.0], [3.0]]])
    assert pairs(views, normalise=False) == pytest.approx([(1 + 3 + 2) / 3])
    slow = features(3, 4, 5)
    expected = [
        np.mean([np.linalg.norm(rows[one] - rows[other]) for one in range(4) for other in range(one)]) for rows in slow
    ]
    assert pairs(slow, normalise=False) == pytest.approx(expected)


@pytest.mark.parametrize(("dim", "number", "expected"), [(2, 100_000, 0.177245), (64, 20_000, 1.126960)])
def test_noise_is_as_far_from_itself_as_the_chi_distribution_says(dim: int, number: int, expected: float) -> None:
    views = 0.7 + 0.1 * features(number, 2, dim)
    assert pairs(views, normalise=False).mean() == pytest.approx(expected, rel=0.01)


def test_the_same_network_twice_memorises_nothing() -> None:
    curve = pairs(features(20, 10, 8))
    scores = memorisation([curve], [curve])
    assert (scores == 0).all()
    found = report({"candidate": scores, "external": scores})
    assert (found["candidate"].mean, found["candidate"].top_mean, found["candidate"].ks_p_value) == (0.0, 0.0, 1.0)
    assert (found["candidate"].normalised == 0).all()


def test_exchanging_the_networks_turns_the_sign_exactly() -> None:
    with_it, without = ([pairs(features(20, 5, 8, seed)) for seed in seeds] for seeds in ((1, 2), (3, 4)))
    assert (memorisation(with_it, without) == -memorisation(without, with_it)).all()


def test_a_planted_example_ranks_first() -> None:
    ordinary = features(50, 10, 16)
    looked_up = ordinary.copy()
    looked_up[17] = 1.0  # all views of this example become one point
    scores = memorisation([pairs(looked_up)], [pairs(ordinary)])
    assert scores.argmax() == 17
    assert np.delete(scores, 17) == pytest.approx(np.zeros(49))


def test_groups_are_compared_with_what_nobody_saw() -> None:
    rng = np.random.default_rng(5)
    raw = {name: rng.normal(mean, 1, 500) for name, mean in (("candidate", 2), ("independent", -2), ("external", 0))}
    raw["shared"] = raw["external"].copy()
    found = report(raw)
    assert found["candidate"].mean == pytest.approx(2, abs=0.2)
    assert found["independent"].mean == pytest.approx(-2, abs=0.2)
    assert found["candidate"].ks_p_value < 1e-6 > found["independent"].ks_p_value
    assert (found["shared"].ks_statistic, found["shared"].ks_p_value) == (0.0, 1.0)
    spread = max(map(np.max, raw.values())) - min(map(np.min, raw.values()))
    for name, scores in raw.items():
        assert found[name].normalised == pytest.approx(scores / spread)
        assert found[name].top_mean == pytest.approx(np.sort(scores)[-5:].mean())


def test_the_highest_hundredth_is_at_least_one_example() -> None:
    assert report({"external": np.array([1.0, 3.0, 2.0])})["external"].top_mean == 3.0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features must be \[n, at least 2 views, dim\], got \[3, 1, 2\]"):
        pairs(np.zeros((3, 1, 2)))
    with pytest.raises(ValueError, match=r"features must be \[n, views, dim\] of \[3, 4\], got \[3, 5, 2\]"):
        anchor(np.zeros((3, 4)), np.zeros((3, 5, 2)))
    with pytest.raises(ValueError, match="raw must have a group external and no empty one, got candidate"):
        report({"candidate": np.ones(2)})
