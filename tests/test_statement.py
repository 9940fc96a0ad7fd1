import json
import math
from dataclasses import replace

from fedssl.privacy.statement import Statement, none_statement

STATEMENT = Statement(
    unit="client",
    mechanism="client",
    adjacency="add_remove",
    adversary="the other clients",
    released="every global model",
    epsilon=4.7836,
    epsilon_rdp=5.655,
    delta=1e-3,
    accountant="pld",
    noise_multiplier=1.0,
    clip=0.5,
    sampling_rate=0.1,
    num_releases=100,
    assumptions=("the server draws the clients in secret", "their number is public"),
    details={"population": 100},
)


def test_the_sentence_names_everything_that_epsilon_depends_on() -> None:
    assert STATEMENT.text() == (
        "guarantee: epsilon 4.784 at delta 0.001 (accountant pld, 5.655 by rdp) for one client, which is there or is "
        "not (add_remove), against the other clients, who see every global model; 100 releases by the mechanism "
        "client, of which each has a unit with probability 0.1, with noise multiplier 1 and clip norm 0.5; assuming "
        "that the server draws the clients in secret and that their number is public"
    )


def test_the_sentence_of_releases_that_see_every_unit() -> None:
    statement = replace(
        STATEMENT,
        unit="example",
        mechanism="local",
        adjacency="replace_one",
        adversary="the server and the other clients",
        released="every update of the client",
        epsilon=4.377,
        epsilon_rdp=None,
        delta=1e-5,
        sampling_rate=1.0,
        num_releases=25,
        noise_multiplier=5.0,
        assumptions=(),
    )
    assert statement.text() == (
        "guarantee: epsilon 4.377 at delta 1e-05 (accountant pld) for one example, which is what it is or any other "
        "(replace_one), against the server and the other clients, who see every update of the client; 25 releases by "
        "the mechanism local, of which each has every unit, with noise multiplier 5 and clip norm 0.5"
    )


def test_a_contribution_of_zero_is_named() -> None:
    text = replace(STATEMENT, adjacency="zero_out").text()
    assert "for one client, which contributes or contributes zero (zero_out), against" in text


def test_epsilon_is_never_rounded_down() -> None:
    for epsilon, shown in ((4.78301, "4.784"), (4.783, "4.783"), (0.0001, "0.001"), (0.0, "0.000"), (8.0, "8.000")):
        text = replace(STATEMENT, epsilon=epsilon, epsilon_rdp=epsilon).text()
        assert text.startswith(f"guarantee: epsilon {shown} at delta 0.001 (accountant pld, {shown} by rdp)")


def test_a_loose_bound_that_says_nothing_is_called_infinite() -> None:
    assert "(accountant pld, infinite by rdp)" in replace(STATEMENT, epsilon_rdp=math.inf).text()


def test_without_a_guarantee_the_sentence_says_none() -> None:
    assert none_statement().text() == "guarantee: none; what clients send is what they trained"
    assert none_statement("clipped, not noised").text() == "guarantee: none; clipped, not noised"
    for missing in ({"epsilon": None}, {"delta": None}, {"epsilon": math.inf}):
        assert replace(STATEMENT, **missing).text() == "guarantee: none; what is released is not noised"


def test_a_statement_is_json_and_an_infinite_number_is_null() -> None:
    values = STATEMENT.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["statement"] == STATEMENT.text()
    assert (values["epsilon"], values["epsilon_rdp"], values["delta"]) == (4.7836, 5.655, 1e-3)
    assert values["assumptions"] == ["the server draws the clients in secret", "their number is public"]
    assert values["details"] == {"population": 100}
    bare = replace(STATEMENT, epsilon=math.inf).to_dict()
    assert bare["epsilon"] is None
    assert str(bare["statement"]).startswith("guarantee: none")
    none = none_statement().to_dict()
    assert json.loads(json.dumps(none, allow_nan=False)) == none
    assert (none["epsilon"], none["clip"], none["num_releases"]) == (None, None, 0)
