"""The checks of arguments."""

from collections.abc import Callable
from math import inf, nan

import pytest

from fedssl.checks import above, at_least, one_of, within
from fedssl.config import key_first


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (lambda: at_least(1, dim=1, hidden=0), "hidden must be at least 1, got 0"),
        (lambda: at_least(2, dim=1, hidden=0), "dim must be at least 2, got 1"),
        (lambda: at_least(0, weight=-0.5), "weight must be 0 or more, got -0.5"),
        (lambda: at_least(0, weight=nan), "weight must be 0 or more, got nan"),
        (lambda: above(0, weight=1, temperature=0.0), "temperature must be above 0, got 0.0"),
        (lambda: above(0, temperature=nan), "temperature must be above 0, got nan"),
        (lambda: within(0, 1, dropout=0.5, momentum=1.5), "momentum must be between 0 and 1, got 1.5"),
        (lambda: within(0, 1, momentum=-0.5), "momentum must be between 0 and 1, got -0.5"),
        (lambda: within(0, 1, momentum=nan), "momentum must be between 0 and 1, got nan"),
        (lambda: one_of(("keep", "reset"), queue="half"), "queue must be one of keep, reset, got half"),
        (lambda: one_of({"avg": 1, "max": 4}, pool="min"), "pool must be one of avg, max, got min"),
    ],
)
def test_the_first_wrong_value_is_named(check: Callable[[], None], text: str) -> None:
    with pytest.raises(ValueError, match=" must be ") as raised:
        check()
    assert str(raised.value) == text
    name, *_, value = text.split()
    assert key_first(text).startswith(f"{name}={value}: must be ")


def test_the_ends_of_a_range_are_allowed() -> None:
    at_least(1, dim=1, hidden=inf)
    within(0, 1, momentum=0, dropout=1)
    above(0, temperature=1e-30)
    one_of(("keep", "reset"), queue="reset")


def test_what_is_not_given_is_not_checked() -> None:
    at_least(1, size=None, limit=1)
    above(0, deadline=None, day=1.0)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        at_least(1, size=None, limit=0)


def test_an_argument_may_have_the_name_of_a_bound() -> None:
    with pytest.raises(ValueError, match="least must be at least 1, got 0"):
        at_least(1, least=0)
    with pytest.raises(ValueError, match="high must be between 0 and 1, got 2"):
        within(0, 1, low=0, high=2)
