"""What noise of a quarter of the pixels' range costs a small network that learns from protected digits."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_victim import accuracy, apply_to_all, digits16, owned

from fedssl.privacy.unlearnable.autoregressive import Autoregressive
from fedssl.privacy.unlearnable.error_minimising import ErrorMinimising
from fedssl.privacy.unlearnable.linearly_separable import LinearlySeparable
from fedssl.privacy.unlearnable.protector import Protector
from fedssl.privacy.unlearnable.random_noise import RandomNoise

BUDGET = 64
KINDS: dict[str, Protector] = {
    "random_sample": RandomNoise(per="sample", budget=BUDGET),
    "random_cluster": RandomNoise(per="cluster", budget=BUDGET),
    "random_class": RandomNoise(per="class", budget=BUDGET),
    "em_class": ErrorMinimising(per="class", budget=BUDGET),
    "lsp": LinearlySeparable(per="class", budget=BUDGET, patch=4),
}


@pytest.fixture(scope="module")
def learned() -> dict[str, float]:
    images, labels, _, test_labels = digits16()
    found = {"clean": accuracy(images, labels, test_labels)}
    found["clean, parity"] = accuracy(images, labels % 2, test_labels % 2)
    for name, protector in KINDS.items():
        changed = apply_to_all(protector.fit(owned()), images)
        found[name] = accuracy(changed, labels, test_labels)
        if name == "em_class":
            found["em_class, parity"] = accuracy(changed, labels % 2, test_labels % 2)
    return found


def test_a_pattern_of_its_own_for_each_image_costs_next_to_nothing(learned: dict[str, float]) -> None:
    assert learned["clean"] > 0.93
    assert learned["random_sample"] > learned["clean"] - 0.02


def test_the_more_a_pattern_says_of_the_class_the_less_is_learned(learned: dict[str, float]) -> None:
    assert learned["random_class"] < learned["random_sample"] - 0.01
    assert learned["em_class"] < learned["random_class"] - 0.03
    assert learned["lsp"] < learned["random_class"] - 0.1


def test_error_minimising_noise_also_costs_whoever_learns_other_labels(learned: dict[str, float]) -> None:
    assert learned["em_class, parity"] < learned["clean, parity"] - 0.03


def test_an_image_whose_class_is_missing_is_refused_where_it_is_needed() -> None:
    whole = owned(20)
    some = replace(whole, labels=np.where(np.arange(20) < 3, -1, whole.labels))
    for protector in (*KINDS.values(), Autoregressive()):
        if protector.needs_labels:
            with pytest.raises(ValueError, match="labels must be known of all 20 images, got 17"):
                protector.fit(some)
