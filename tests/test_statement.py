import json
import math
from dataclasses import replace

import pytest

from fedssl.privacy.statement import Statement, none_statement

EXAMPLE = Statement(
    unit="example",
    mechanism="example",
    adjacency="add_remove",
    adversary="the server, the other clients and whoever gets the model",
    released="every update of the client",
    epsilon=4.78441,
    epsilon_rdp=5.6551,
    delta=1e-3,
    accountant="pld",
    noise_multiplier=1.0,
    clip=0.1,
    sampling_rate=0.1,
    num_releases=100,
    assumptions=("how many examples a client holds is public", "nobody knows the seed"),
    details={"median_epsilon": 3.5},
)


def test_the_sentence_of_sampled_examples() -> None:
    assert EXAMPLE.text() == (
        "guarantee: epsilon 4.785 at delta 0.001 (accountant pld, 5.656 by rdp) for one example, which is there or is "
        "not (add_remove), against the server, the other clients and whoever gets the model, who see every update of "
        "the client; 100 releases by the mechanism example, of which each has a unit with probability 0.1, with noise "
        "multiplier 1 and clip norm 0.1; assuming that how many examples a client holds is public and that nobody "
        "knows the seed"
    )


def test_the_sentence_of_a_message_without_sampling() -> None:
    local = replace(
        EXAMPLE,
        unit="client",
        mechanism="local",
        adjacency="replace_one",
        adversary="the server and everyone else",
        released="every message of the client",
        epsilon=8.0,
        epsilon_rdp=None,
        delta=1e-5,
        noise_multiplier=0.6002,
        clip=1.0,
        sampling_rate=1,
        num_releases=1,
        assumptions=(),
    )
    assert local.text() == (
        "guarantee: epsilon 8.000 at delta 1e-05 (accountant pld) for one client, which is what it is or any other "
        "(replace_one), against the server and everyone else, who see every message of the client; 1 releases by the "
        "mechanism local, of which each has every unit, with noise multiplier 0.6002 and clip norm 1"
    )


def test_the_sentence_says_what_zero_out_is() -> None:
    assert (
        "one example, which contributes or contributes zero (zero_out),"
        in replace(EXAMPLE, adjacency="zero_out").text()
    )


@pytest.mark.parametrize(("value", "shown"), [(1.0, "1.000"), (1.0004, "1.001"), (0.0, "0.000"), (0.9999, "1.000")])
def test_epsilon_is_never_rounded_down(value: float, shown: str) -> None:
    assert f"epsilon {shown} at" in replace(EXAMPLE, epsilon=value).text()


def test_a_run_without_a_guarantee_says_so() -> None:
    assert none_statement().text() == "guarantee: none; what clients send is what they trained"
    assert none_statement("updates are clipped").text() == "guarantee: none; updates are clipped"
    for statement in (replace(EXAMPLE, epsilon=None), replace(EXAMPLE, epsilon=math.inf), replace(EXAMPLE, delta=None)):
        assert statement.text() == "guarantee: none; what is released is not noised"


def test_the_values_are_json_and_hold_the_sentence() -> None:
    values = json.loads(json.dumps(EXAMPLE.to_dict(), allow_nan=False))
    assert values["statement"] == EXAMPLE.text()
    assert values["epsilon"] == 4.78441
    assert values["assumptions"] == ["how many examples a client holds is public", "nobody knows the seed"]
    assert values["details"] == {"median_epsilon": 3.5}
    assert Statement(**{name: value for name, value in EXAMPLE.to_dict().items() if name != "statement"}).text() == (
        EXAMPLE.text()
    )
    for statement in (none_statement(), replace(EXAMPLE, epsilon=math.inf)):
        none = json.loads(json.dumps(statement.to_dict(), allow_nan=False))
        assert none["epsilon"] is None
        assert none["statement"].startswith("guarantee: none")
