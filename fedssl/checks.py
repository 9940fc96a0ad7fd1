"""Checks of arguments; the configuration puts the key in front of their texts (`fedssl.config.key_first`)."""

from collections.abc import Collection


def at_least(least: float, /, **values: float | None) -> None:
    """Check that values are `least` or more; None is a value that is not given.

    Raises:
        ValueError: One is less, or NaN.
    """
    wanted = f"at least {least}" if least else "0 or more"
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be {wanted}, got {value}")


def above(bound: float, /, **values: float | None) -> None:
    """Check that values are greater than `bound`; None is a value that is not given.

    Raises:
        ValueError: One is not, or NaN.
    """
    for name, value in values.items():
        if value is not None and not value > bound:
            raise ValueError(f"{name} must be above {bound}, got {value}")


def within(low: float, high: float, /, **values: float) -> None:
    """Check that values are in `[low, high]`.

    Raises:
        ValueError: One is outside, or NaN.
    """
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def one_of(allowed: Collection[str], /, **values: str) -> None:
    """Check that values are among `allowed`.

    Raises:
        ValueError: One is not.
    """
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value}")
