"""Simulated secure aggregation: a sum of shares, and nothing of its terms."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fedssl.arrays import Arrays
from fedssl.objectives.rotnet import RotNet
from fedssl.privacy.account import LEDGER, Account
from fedssl.privacy.accounting import Release
from fedssl.privacy.client import Client, NoisedMean
from fedssl.privacy.mechanism import Setting, Terms
from fedssl.privacy.noise import NoiseKey
from fedssl.privacy.secure_sum import SecureSum
from fedssl.wire import LocalUpdate

KEY = NoiseKey.from_seed(0)
CURRENT = {"backbone.w": np.ones(4, np.float32), "backbone.n": np.array(3, np.int64)}


def mean(noise: float, survivors: int, clients: int) -> NoisedMean:
    mechanism = Client(noise_multiplier=noise, secure_aggregation=True, min_survivors=survivors, adjacency="zero_out")
    return NoisedMean(mechanism, Terms(noise, 1e-3, Release(noise, 1.0, 1.0, 1)), 1.0, clients, KEY, 1.0)


def updates(rule: NoisedMean, steps: list[float], round_number: int = 1) -> Iterator[LocalUpdate]:
    for partition, step in enumerate(steps):
        trained = {"backbone.w": CURRENT["backbone.w"] + np.float32(step), "backbone.n": np.array(9, np.int64)}
        where = (partition, round_number)
        sent = rule.mechanism.sent(CURRENT, trained, frozenset({"backbone.n"}), rule.terms, KEY, where)
        yield LocalUpdate(*where, sent, 1, {})


def merged(rule: NoisedMean, steps: list[float], round_number: int = 1) -> Arrays:
    stream = updates(rule, steps, round_number)
    return rule(CURRENT, stream, round_number, frozenset({"backbone.n"}), lambda _: 1).arrays


def test_a_sum_is_right_to_2_to_the_minus_32_and_wraps_below_zero() -> None:
    total = SecureSum({"w": (2,)})
    for values in ([0.5, -1.25], [-2.0, 3.0], [0.1, 0.1]):
        total.add({"w": np.array(values)})
    np.testing.assert_allclose(total.result()["w"], [-1.4, 1.85], atol=3 * 2.0**-33)


def test_no_attribute_shows_a_term() -> None:
    total = SecureSum({"w": (2,)})
    total.add({"w": np.ones(2)})
    assert [name for name in vars(total) if not name.startswith("_SecureSum__")] == []


def test_without_noise_it_is_the_mean_of_clipped_changes_over_all_clients() -> None:
    # steps of .25 in 4 dimensions have norm .5; one of 5 has norm 10 and is clipped to 1, .5 in each dimension
    arrays = merged(mean(0.0, 2, clients=4), [0.25, -0.25, 5.0])
    np.testing.assert_allclose(arrays["backbone.w"], 1 + 0.5 / 4, rtol=1e-6)
    assert arrays["backbone.n"] == 3


def test_too_few_survivors_move_nothing() -> None:
    assert merged(mean(0.0, 3, clients=4), [0.25, 0.25])["backbone.w"].tolist() == [1.0] * 4


def test_the_shares_of_all_but_one_of_the_fewest_survivors_are_all_of_the_noise() -> None:
    rule = mean(2.0, 3, clients=3)
    draws = np.concatenate([merged(rule, [0.0] * 3, number)["backbone.w"] - 1 for number in range(1, 501)])
    # whoever takes one of three shares away is left with two thirds of the variance, which is that of the ledger
    assert np.std(draws * 3) * (2 / 3) ** 0.5 == pytest.approx(2.0, rel=0.06)  # 2,000 draws: 4 standard errors


def test_a_neighbouring_federation_has_as_many_clients() -> None:
    with pytest.raises(ValueError, match="adjacency must be zero_out or replace_one with secure_aggregation"):
        Client(noise_multiplier=1.0, secure_aggregation=True, min_survivors=2)
    with pytest.raises(ValueError, match="min_survivors must be at least 2, got 1"):
        Client(noise_multiplier=1.0, secure_aggregation=True, min_survivors=1, adjacency="zero_out")


def test_survivors_are_asked_for_with_secure_aggregation_alone() -> None:
    for arguments in ({"secure_aggregation": True}, {"min_survivors": 3}):
        with pytest.raises(ValueError, match="min_survivors must be a number where secure_aggregation is true"):
            Client(noise_multiplier=1.0, **arguments)


@pytest.mark.parametrize(("shares", "num_charges"), [(False, 1), (True, 2)])
def test_a_release_of_keys_that_clients_drew_anew_is_another_release(
    shares: bool, num_charges: int, tmp_path: Path
) -> None:
    survivors = 2 if shares else None
    mechanism = Client(
        noise_multiplier=1.0, delta=1e-3, noise="secure", secure_aggregation=shares, min_survivors=survivors,
        adjacency="zero_out",
    )  # fmt: skip
    run = Setting(RotNet(), nn.ModuleDict(), "share", None, None, 2, 1, 4, 0, None, None, False)
    for _ in range(2):  # the second process goes on from before the round
        account = Account(mechanism, run, tmp_path, 0, None)
        assert account.charge(1, [0, 1, 2, 3])
    assert len((tmp_path / LEDGER).read_text().splitlines()) == num_charges
