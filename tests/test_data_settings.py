"""Every option of the groups data and partition names every setting of what it makes, so that each can be changed."""

import inspect
from importlib import import_module

import pytest

from fedssl.compose import groups, load


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in ("data", "partition") for option in groups()[group]]
)
def test_a_yaml_names_every_setting(group: str, option: str) -> None:
    spec = load([f"{group}={option}"]).components[group]
    module, _, name = spec["_target_"].rpartition(".")
    settings = inspect.signature(getattr(import_module(module), name)).parameters
    assert list(spec) == ["_target_", *settings]
    assert group == "partition" or spec["channels"] in (1, 3)
