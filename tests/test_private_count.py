"""The noise of an adaptive clip: the count of unclipped updates has its own, and leaves the update the rest."""

import math

import numpy as np
import pytest
from test_client_privacy import mean_of

CLIENTS = 20  # a count of them has a noise of 1
MULTIPLIER = 1.0


def test_the_clip_moves_by_the_noise_of_the_count_where_nobody_is_there() -> None:
    """A twentieth of the clients, over the clients, times the learning rate of the clip."""
    rule = mean_of(num_clients=CLIENTS, quantile=0.5, clip_rate=0.2, noise_multiplier=MULTIPLIER)
    clips = [rule.clip]
    for round_number in range(1, 2001):
        rule({"backbone.w": np.zeros(1)}, iter(()), round_number, frozenset(), lambda _: 1)
        clips.append(rule.clip)
    steps = np.diff(np.log(clips))
    assert steps.std() == pytest.approx(0.2 / 20, rel=0.07)
    assert abs(steps.mean()) < 4 * 0.01 / math.sqrt(2000)


def test_an_update_beside_a_count_has_more_noise_than_one_alone() -> None:
    """Both are released: 1 / 1.1547^2 of the update and 1 / 2^2 of the count are 1 together."""
    zeros = {"backbone.w": np.zeros(40_000)}
    alone, beside = (
        mean_of(num_clients=CLIENTS, noise_multiplier=MULTIPLIER, quantile=quantile)(
            zeros, iter(()), 1, frozenset(), lambda _: 1
        ).arrays["backbone.w"]
        for quantile in (None, 0.5)
    )
    assert CLIENTS * alone.std() == pytest.approx(1.0, rel=0.02)
    assert CLIENTS * beside.std() == pytest.approx(1.1547, rel=0.02)
